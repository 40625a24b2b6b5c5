"""The recipes that come with lvd."""
