"""Real photographs of free licences, read out of packages that are downloaded and not installed.

    mkdir -p runs/yardstick/packages && cd runs/yardstick/packages
    pip download --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
    npm pack @vladmandic/face-api@1.7.15
    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds gcompris-qt-data

The last line wants Debian 12. Each photograph belongs to one split, so that no detector is measured on a photograph
that it was trained on.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from examples.synthetic_shapes import Array

SPLITS = ("train", "choose", "measure")
SHORT = 640  # pixels of the shorter side at most
LEAST = 300  # pixels of it at least
WEBP = re.compile(rb"RIFF(.{4})WEBP", re.DOTALL)  # the head of such a file, with its size in between

Point = tuple[int, int]


class Face(NamedTuple):
    """Pixels of a photograph: the eye on the left, the eye on the right, the mouth."""

    eyes: tuple[Point, Point]
    mouth: Point


class Photograph(NamedTuple):
    """`image` (H, W, 3) uint8 RGB; `faces` in its pixels; `source`: package, file and licence."""

    name: str
    image: Array
    faces: list[Face]
    source: str


class Source(NamedTuple):
    """Photographs of one package: those members of its archive whose base name, without its ending, is named."""

    archive: str  # a pattern of its file name
    names: str
    licence: str


SOURCES = (
    Source(
        "scikit_image-*.whl",
        "astronaut chelsea coffee rocket motorcycle_left retina ihc camera coins brick gravel grass",
        "public domain, CC0 or BSD-3-Clause",
    ),
    Source("scikit_learn-*.whl", "china flower", "CC BY 2.0"),
    Source("vladmandic-face-api-*.tgz", "sample1 sample2 sample3 sample4 sample5 sample6", "MIT"),
    Source(
        "lomiri-wallpapers-16.04_*.deb",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace"
        " Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich friends_by_Aitzol_Berasategi"
        " greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi"
        " seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
        "CC BY 4.0, CC BY-SA 4.0 or CC0",
    ),
    Source("lomiri-wallpapers-20.04_*.deb", "Kleiber_by_Lukas_Baubkus", "CC BY-SA 4.0"),
    Source(
        "mate-backgrounds_*.deb",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
        "GPL-2.0-or-later",
    ),
    # Containers, each of many photographs without a name: how many is known only when they are read, so they come last.
    Source(
        "gcompris-qt-data_*.deb",
        "explore_monuments explore_world_animals explore_farm_animals",
        "by photograph, in the package's copyright file: CC BY, CC BY-SA, GFDL, public domain or GPL-3.0-or-later",
    ),
)
# In pixels of the files, which are 1920 wide.
FACES = {
    "sample1": (((440, 456), (516, 460), (484, 549)), ((1555, 275), (1618, 337), (1527, 373))),
    "sample2": (((1486, 281), (1569, 254), (1559, 348)),),
    "sample3": (
        ((626, 430), (724, 430), (677, 536)),
        ((1114, 318), (1219, 337), (1150, 439)),
        ((1551, 409), (1653, 402), (1603, 515)),
    ),
    "sample4": (
        ((322, 315), (398, 285), (376, 388)),
        ((705, 145), (777, 185), (708, 239)),
        ((1320, 228), (1379, 265), (1323, 318)),
    ),
    "sample5": (
        ((840, 189), (919, 205), (873, 286)),
        ((1147, 293), (1219, 290), (1179, 373)),
        ((677, 514), (753, 514), (716, 608)),
        ((1441, 507), (1523, 489), (1490, 609)),
        ((421, 989), (520, 976), (486, 1095)),
    ),
    "sample6": (
        ((321, 608), (426, 594), (387, 712)),
        ((702, 453), (799, 446), (767, 564)),
        ((1222, 428), (1329, 428), (1271, 536)),
        ((1538, 373), (1631, 394), (1559, 493)),
    ),
}


def photographs(packages: Path, split: str, sources: Sequence[Source] = SOURCES) -> list[Photograph]:
    """Every third photograph of the packages in that folder: "train", "choose" and "measure" take turns.

    With fewer sources each photograph stays in its split.
    """
    place, found, number = SPLITS.index(split), [], 0
    for source in SOURCES:
        if source in sources:
            chosen = (one for i, one in enumerate(pictures_of(packages, source), number) if i % len(SPLITS) == place)
            found += [photograph_of(*picture) for picture in chosen]
        number += len(source.names.split())
    return found


def pictures_of(packages: Path, source: Source) -> Iterator[tuple[str, bytes, str]]:
    """Name, encoded image and origin of a package's photographs, in the order of the source."""
    found = sorted(packages.glob(source.archive))
    if not found:
        raise SystemExit(f"{packages / source.archive} is missing: the head of {__file__} tells how to download it")
    wanted = source.names.split()
    files = {Path(name).stem: (name, data) for name, data in members(found[-1], set(wanted))}
    for stem in wanted:
        if stem not in files:
            raise SystemExit(f"{found[-1]} has no photograph {stem!r}: it is another version; download it anew")
        name, data = files[stem]
        origin = f"{found[-1].name}, {name}: {source.licence}"
        if name.endswith(".rcc"):
            for number, picture in enumerate(webp_pictures(data)):
                yield f"{stem}_{number:02d}", picture, origin
        else:
            yield stem, data, origin


def photograph_of(name: str, data: bytes, origin: str) -> Photograph:
    image, scale = decoded(data)
    return Photograph(name, image, [scaled_face(points, scale) for points in FACES.get(name, ())], origin)


def members(archive: Path, stems: set[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of an archive's files of these base names (without ending): a wheel, a .tgz, or a .deb."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if Path(name).stem in stems and "/tests/" not in name:
                    yield name, zipped.read(name)
        return
    content = archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data_of_deb(content) if archive.suffix == ".deb" else content)) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).stem in stems:
                file = tar.extractfile(member)
                assert file is not None  # since it is a file
                yield member.name, file.read()


def data_of_deb(content: bytes) -> bytes:
    """The archive data.tar of a Debian package: after 8 bytes, files with a head of 60 bytes, at even places."""
    place = 8
    while place < len(content):
        name, size = content[place : place + 16].decode().strip(), int(content[place + 48 : place + 58])
        place += 60
        if name.startswith("data.tar"):
            return content[place : place + size]
        place += size + size % 2
    raise SystemExit("a Debian package without data.tar: the file is broken; download it anew")


def webp_pictures(container: bytes) -> list[bytes]:
    """The WebP files that lie uncompressed in a container, in their order."""
    return [
        container[match.start() : match.start() + 8 + int.from_bytes(match[1], "little")]
        for match in WEBP.finditer(container)
    ]


def decoded(data: bytes) -> tuple[Array, float]:
    """RGB, its shorter side SHORT pixels or fewer, and by how much it was scaled."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None or min(image.shape[:2]) < LEAST:
        raise SystemExit("a photograph can't be decoded, or is too small: the package is another version")
    scale = min(1.0, SHORT / min(image.shape[:2]))
    if scale < 1.0:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, scale


def scaled_face(points: tuple[Point, Point, Point], scale: float) -> Face:
    left, right, mouth = ((round(x * scale), round(y * scale)) for x, y in points)
    return Face((left, right), mouth)
