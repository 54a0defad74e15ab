"""The instructions of a Dockerfile, and its install steps as a script for a machine without an engine."""

import json
import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word, what follows it, and the number of its stage."""

    word: str
    rest: str
    stage: int


def instructions(text):
    """All instructions in order; lines that go on are one, and comments are left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found, stage = [], -1
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(word, rest.strip(), stage))
    return found


def variables(found):
    """The environment of the last stage."""
    last = max(each.stage for each in found)
    pairs = [pair for each in found if (each.word, each.stage) == ("ENV", last) for pair in shlex.split(each.rest)]
    return dict(pair.partition("=")[::2] for pair in pairs)


def copies(found):
    """(sources, destination) of every COPY from the build's context."""
    words = [each.rest.split() for each in found if each.word == "COPY" and not each.rest.startswith("--from")]
    return [(tuple(parts[:-1]), parts[-1]) for parts in words]


def only(found, word):
    """What follows the one instruction of this word in the last stage."""
    last = max(each.stage for each in found)
    (rest,) = [each.rest for each in found if (each.word, each.stage) == (word, last)]
    return rest


def as_list(rest):
    """The words of an instruction in exec form; ``ValueError`` for shell form."""
    return json.loads(rest)
