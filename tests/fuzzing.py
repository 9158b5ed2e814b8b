"""How the fuzz spoils files and values, and what it demands of whatever reads them."""

import copy
import random
import signal
from contextlib import contextmanager
from pathlib import Path

from deformscope import DeformscopeError

SECONDS = 120
"""Far more than any case takes on the busiest machine: a case that takes longer hangs."""

NASTY = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "0", "1", "-1", "nan", "1e999", "x" * 5000, "a\0b", "a\nb"),
    *("\ud800", "\u202e", "../1.png", "/etc/passwd", ".", "..", "~", "C:\\1.png", "{}", "[]", "null"),
    *([], {}, [[]], [{}], {"a": 1}, [None], [1, 2, 3], [1, 2, 3, 4], [-5, -5, 3, 3], [0, 0, 1e9, 1e9], [[1, 2, 3, 4]]),
    *([["a"] * 6], [[0, 0, 9, 0, 9, 9, 0]], [[float("nan")] * 8], {"size": [60, 80], "counts": "o"}),
    *({"size": [60, 80], "counts": [4800]}, {"size": [60, 80], "counts": [0, 4800]}, {"counts": [2**40]}),
    {"size": [2**20, 2**20], "counts": [0, 2**40]},
)


@contextmanager
def in_time():
    """Raise where the block hangs."""

    def ring(*_):
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def checked(error: DeformscopeError, path: Path) -> str:
    """An error's text, which is one line that names the file."""
    text = str(error)
    assert "\n" not in text and path.name in text, text
    return text


def garbled(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, doubled, swapped or cut off; more often where files keep their headers."""
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not broken:
            break
        near = rng.random()
        reach = min(len(broken), 400) if near < 0.7 else len(broken)
        place = rng.randrange(reach) if near < 0.5 else len(broken) - 1 - rng.randrange(reach)
        length = rng.choice((1, 1, 2, 4, 16, 200))
        part = broken[place : place + length]
        kind = rng.randrange(6)
        if kind == 0:
            broken[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            broken[place : place + length] = rng.randbytes(len(part))
        elif kind == 2:
            del broken[place : place + length]
        elif kind == 3:
            broken[place:place] = part
        elif kind == 4:
            broken[place : place + length] = bytes([rng.choice((0, 255, 127, 128))]) * len(part)
        else:
            del broken[place if rng.random() < 0.5 else rng.randrange(len(broken)) :]
    return bytes(broken)


def spoilt(rng: random.Random, content):
    """A JSON value in which some values are nasty ones, gone, doubled or each other's."""
    content = copy.deepcopy(content)
    places = []

    def walk(value):
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        try:
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            elif kind == 2:
                other, there = rng.choice(places)
                holder[key] = copy.deepcopy(other[there])
            else:
                holder[key] = copy.deepcopy(rng.choice(NASTY))
        except (KeyError, IndexError):  # gone with what held it
            continue
    return content


# annotation files
