"""Mutated files through readers: each is read or refused in expected words, within seconds, and nothing is written."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What a reader may raise; anything else is a fault of ours.
EXPECTED = (ValueError, OSError)


@dataclass(frozen=True)
class Target:
    """A file that is mutated, and what reads it.

    Attributes:
        path: of the file.
        content: what is mutated.
        read: reads the file.
        wrap: turns the mutated content into the file's, such as ``gzip.compress``: behind a sound checksum a mutation
            gets further.
    """

    path: Path
    content: bytes
    read: Callable[[], object]
    wrap: Callable[[bytes], bytes] = bytes


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, a piece cut out or repeated, or the end lost."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(max(1, min(len(changed), 400) if generator.random() < 0.7 else len(changed)))
        kind = generator.random()
        if kind < 0.7:
            changed[place : place + 1] = bytes([generator.randrange(256)])
        elif kind < 0.8:
            del changed[place : place + generator.randint(1, 50)]
        elif kind < 0.9:
            changed[place:place] = changed[place : place + generator.randint(1, 50)]
        else:
            del changed[place:]
    return bytes(changed)


def fuzz(folder: Path, targets: Sequence[Target], times: int, seed: int) -> int:
    """How many of so many mutated files under a folder were refused. Anything but EXPECTED fails the test."""
    generator = random.Random(seed)
    for target in targets:
        target.path.write_bytes(target.wrap(target.content))
        target.read()
    there, refused = set(folder.rglob("*")), 0
    for number in range(times):
        target = generator.choice(targets)
        content = mutated(target.content, generator)
        target.path.write_bytes(target.wrap(content))
        started = time.perf_counter()
        try:
            target.read()
        except EXPECTED:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{target.path}, file {number} of seed {seed}: {error!r} for {content!r}") from error
        assert time.perf_counter() - started < 5, (target.path, number, seed, content)
        target.path.write_bytes(target.wrap(target.content))
    assert set(folder.rglob("*")) == there
    return refused
