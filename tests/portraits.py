"""Pictures with drawn faces that a face detector finds."""

import numpy as np
from PIL import Image, ImageDraw


def drawn(edge_px: int) -> Image.Image:
    """A face with hair, eyes, nose and mouth in a square of that edge, of which it fills the middle."""
    image = Image.new("RGB", (400, 400), (120, 150, 180))
    pen = ImageDraw.Draw(image)

    def oval(x: float, y: float, wide: float, tall: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse((x - wide, y - tall, x + wide, y + tall), fill=colour)

    pen.rectangle((50, 310, 350, 400), fill=(40, 50, 90))
    pen.rectangle((164, 260, 236, 320), fill=(205, 160, 130))
    oval(200, 170, 112, 136, (50, 32, 22))
    oval(200, 196, 92, 116, (225, 180, 150))
    oval(200, 110, 100, 40, (50, 32, 22))
    for x in (164, 236):
        oval(x, 180, 17, 9, (250, 250, 250))
        oval(x, 180, 8, 9, (50, 35, 25))
        pen.rectangle((x - 22, 158, x + 22, 163), fill=(60, 40, 30))
    pen.polygon([(200, 190), (186, 224), (214, 224)], fill=(200, 150, 120))
    oval(200, 256, 30, 9, (180, 75, 75))
    return image.resize((edge_px, edge_px), Image.Resampling.LANCZOS)


def scene(size: tuple[int, int], faces_at: list[tuple[int, int, int]]) -> tuple[Image.Image, np.ndarray]:
    """A picture with drawn faces at (left, top, edge), and the boxes around them as shares."""
    image = Image.new("RGB", size, (120, 150, 180))
    boxes = []
    for left, top, edge in faces_at:
        image.paste(drawn(edge), (left, top))
        corners = np.array([left, top, left, top]) + edge * np.array([0.27, 0.2, 0.73, 0.78])
        boxes.append(corners / [*size, *size])
    return image, np.array(boxes)
