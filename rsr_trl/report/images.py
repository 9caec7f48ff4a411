"""Images of a row as a few words and as thumbnails for the page. Each is opened by itself: a broken one says so."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from rsr_trl.formats import IMAGES


MAX_IMAGES = 8  # of a row on the page
SIDE = 160  # of a thumbnail at most, in pixels
QUALITY = 70


@dataclass(frozen=True)
class Shown:
    """One image: what it is in words, and a `data:` address of its thumbnail, if it can be opened, with its size."""

    text: str
    thumbnail: str | None = None
    width: int = 0
    height: int = 0


def images_of(row: Mapping, thumbnails: bool = False) -> list[Shown]:
    """The images of a row as they are stored (see [`~rsr_trl.scoring.rows.undecoded`])."""
    values = [value for name in IMAGES if name in row for value in _listed(row[name])]
    return [_shown(value, thumbnails and number < MAX_IMAGES) for number, value in enumerate(values)]


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _shown(value: object, thumbnail: bool) -> Shown:
    from PIL import Image  # a page of text needs it not

    source = value if isinstance(value, Mapping) else {"path": value, "bytes": None} if isinstance(value, str) else {}
    data, path = source.get("bytes"), source.get("path")
    try:
        image = value if isinstance(value, Image.Image) else Image.open(path if data is None else BytesIO(data))
        size = "" if data is None else f", {-(-len(data) // 1000):,} kB"
        text = f"{image.width:,} x {image.height:,}, {image.format or 'no file'}{size}"
        if not thumbnail:
            return Shown(text)
        small = image.copy() if image is value else image
        small.thumbnail((SIDE, SIDE))
        out = BytesIO()
        small.convert("RGB").save(out, "JPEG", quality=QUALITY)
    except Exception:  # whatever a broken file raises
        return Shown("can't be read")
    address = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Shown(text, address, small.width, small.height)
