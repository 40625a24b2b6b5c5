"""The miniature web and the tests."""
