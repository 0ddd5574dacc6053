"""Where the pictures of a GIF lie: torchvision 0.26 writes past its memory for one that leaves the canvas."""

import struct


def check_gif(content: bytes) -> None:
    """Raise ValueError where a picture of a GIF leaves the canvas; what else is wrong with it, its decoder finds."""
    if len(content) < 13:
        return
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    place = 13 + _table(flags)
    while place < len(content):
        kind = content[place]
        if kind == 0x21:  # an extension
            place = _after_blocks(content, place + 2)
        elif kind == 0x2C and place + 10 <= len(content):
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", content, place + 1)
            if left + wide > width or top + high > height:
                raise ValueError(f"a GIF of {width} x {height} pixels with a picture that reaches beyond it")
            place = _after_blocks(content, place + 10 + _table(flags) + 1)
        else:
            return


def _table(flags: int) -> int:
    """Return the bytes of the table of colours that follows."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(content: bytes, place: int) -> int:
    """Return where the blocks end that begin at `place`, each behind its length; a length of 0 is the last."""
    while place < len(content) and content[place]:
        place += 1 + content[place]
    return place + 1
