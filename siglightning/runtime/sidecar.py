"""The checksum beside a checkpoint file, and whether the file is what the checksum says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siglightning.runtime.files import file_sha256, write_text


class DamagedCheckpointError(ValueError):
    """A checkpoint file is truncated, altered, or not one that can be loaded without running its code."""


@dataclass(frozen=True)
class Sidecar:
    """What ``NAME.ckpt.sha256`` says of ``NAME.ckpt``; ``sha256sum -c`` reads the file as well.

    Attributes:
        sha256: of the whole file, hexadecimal.
        size: in bytes.
        global_step: optimizer steps taken.
        resumable: whether it holds optimizer states, or weights alone.
        replaces: the whole file that has the name until this one takes it; ``None``: there was none.
    """

    sha256: str
    size: int
    global_step: int
    resumable: bool
    replaces: "Sidecar | None" = None

    def write(self, checkpoint: Path) -> None:
        """Write the file beside ``checkpoint``."""
        facts = self._facts()
        if self.replaces is not None:
            facts["replaces"] = self.replaces._facts() | {"sha256": self.replaces.sha256}
        write_text(sidecar_path(checkpoint), f"# {json.dumps(facts)}\n{self.sha256}  {checkpoint.name}\n")

    def _facts(self) -> dict[str, Any]:
        return {"bytes": self.size, "global_step": self.global_step, "resumable": self.resumable}

    @classmethod
    def _of_facts(cls, sha256: str, facts: Mapping[str, Any], replaces: "Sidecar | None" = None) -> "Sidecar":
        return cls(sha256, int(facts["bytes"]), int(facts["global_step"]), bool(facts["resumable"]), replaces)

    @classmethod
    def read(cls, checkpoint: Path) -> "Sidecar":
        """Read the file beside ``checkpoint``.

        Raises:
            DamagedCheckpointError: the file is missing or not of our making.
        """
        try:
            comment, checksum = sidecar_path(checkpoint).read_text().splitlines()
            facts = json.loads(comment.removeprefix("#"))
            before = facts.get("replaces")
            return cls._of_facts(
                checksum.split()[0], facts, None if before is None else cls._of_facts(before["sha256"], before)
            )
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{checkpoint} has no {sidecar_path(checkpoint).name} beside it.") from error
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DamagedCheckpointError(f"{sidecar_path(checkpoint)} is damaged: {error}") from error


def sidecar_path(checkpoint: Path) -> Path:
    """``step-5.ckpt`` to ``step-5.ckpt.sha256``."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def verify(path: Path) -> Sidecar:
    """Compare a checkpoint with its checksum.

    Returns:
        What is known of the file; where a save was cut off before the new file took the name, of the old one.

    Raises:
        DamagedCheckpointError: it was cut short or altered, or has no checksum.
    """
    sidecar = Sidecar.read(path)
    size = path.stat().st_size
    possible = [each for each in (sidecar, sidecar.replaces) if each is not None and each.size == size]
    digest = file_sha256(path) if possible else ""
    for each in possible:
        if each.sha256 == digest:
            return each
    if size != sidecar.size:
        kind = "truncated" if size < sidecar.size else "damaged"
        raise DamagedCheckpointError(f"{path} is {kind}: expected {sidecar.size} bytes, it has {size}.")
    raise DamagedCheckpointError(f"{path} is damaged: its content does not match its SHA-256.")


def standing(path: Path) -> Sidecar | None:
    """What is known of the whole file that has a name; ``None`` where there is none."""
    try:
        return replace(verify(path), replaces=None)
    except (DamagedCheckpointError, FileNotFoundError):
        return None
