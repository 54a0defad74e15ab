"""Whether captions become the ids that the text tower knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, Level, NotApplicableError
from siglightning.models import TwoTower
from siglightning.models.token_record import TokenRecord
from siglightning.models.towers import TextTower


@dataclass(frozen=True)
class Family:
    """How a family of checkpoints saw its captions; ``None`` where it does not matter or is not known.

    Attributes:
        name: of the family.
        context_length: tokens that every caption was padded to.
        pad_id: with which.
        lower_cases: whether captions were lower-cased.
        strips_punctuation: whether punctuation was removed.
    """

    name: str
    context_length: int | None = None
    pad_id: int | None = None
    lower_cases: bool | None = None
    strips_punctuation: bool | None = None


def check_tokens(case: Case) -> Iterator[Finding]:
    """Compare the tokenizer with the tower, and with what the tower's weights were trained with."""
    network = case.base_task.network
    if not isinstance(network, TwoTower) or case.base_task.input_spec.tokenizer is None:
        raise NotApplicableError("no text is read")
    tower, record = network.text_tower, TokenRecord.of(network.tokenizer)
    yield _of_tower(tower, record)
    trained = case.origin.trained("text_tower")
    told = TokenRecord.read(case.origin.record.get("text") or {}) if "text side" in case.origin.parts else None
    if told is not None:
        yield _compared(_differences(record, told), f"the run of {case.origin.checkpoint}", "error")
        return
    family = family_of(tower)
    if family is not None:
        found = _of_family(record, family)
        found += _of_source(record, tower) if trained else []
        yield _compared(found, f"{family.name} checkpoints", "error" if trained else "warning")
    elif trained and case.origin.checkpoint is not None and "text side" in case.origin.parts:
        text = f"{case.origin.checkpoint} does not tell with which tokenizer its text tower was trained"
        yield Finding("warning", text, "Compare `tokenizer`, `context_length` and `canonicalize` with its config.yaml.")
    elif trained:
        yield _compared(_of_source(record, tower), f"the tower's weights, {tower.default_tokenizer}", "error")


def _of_tower(tower: TextTower, record: TokenRecord) -> Finding:
    """The tower's own numbers; a tower that masks padding looks for its own id of it."""
    values = record.values()
    rules = [word for word, done in (("case", record.lower_cases), ("punctuation", record.strips_punctuation)) if done]
    cleaned = f"without regard to {' and '.join(rules)}" if rules else "with case and punctuation"
    text = (
        f"tokenizer {record.source}: {record.context_length} ids of {record.vocab_size:,}, padded with "
        f"{record.pad_id}, {cleaned}"
    )
    if getattr(tower, "mask_padding", False) and tower.pad_id != record.pad_id:
        return Finding(
            "error",
            f"{text}; the tower masks {tower.pad_id} as padding, so that it reads all padding as text",
            "Take the tower's own tokenizer (leave `tokenizer` out), or one that pads with the tower's id.",
            values=values,
        )
    if tower.context_length != record.context_length:
        return Finding(
            "error",
            f"{text}; the tower reads {tower.context_length}",
            "Set `context_length` of the network alone, which sets both.",
            values=values,
        )
    return Finding("ok", text, values=values)


def _compared(differences: list[str], what: str, level: Level) -> Finding:
    if not differences:
        return Finding("ok", f"captions become ids as for {what}")
    text = f"not as {what}: {'; '.join(differences)}"
    return Finding(level, text, "Set `tokenizer`, `context_length` and `canonicalize` of the network as they had them.")


def _differences(record: TokenRecord, told: TokenRecord) -> list[str]:
    """What another run's record says otherwise; the name of its tokenizer alone does not matter."""
    mine, theirs = record.values(), told.values()
    names = [name for name in mine if name not in ("source", "ids") and mine[name] != theirs[name]]
    if record.ids != told.ids and not {"lower_cases", "strips_punctuation", "vocab_size"} & set(names):
        return [*_told(names, mine, theirs), f"other ids for the same captions ({record.source}, there {told.source})"]
    return _told(names, mine, theirs)


def _of_family(record: TokenRecord, family: Family) -> list[str]:
    names = [
        name
        for name in ("context_length", "pad_id", "lower_cases", "strips_punctuation")
        if getattr(family, name) not in (None, getattr(record, name))
    ]
    return _told(names, record.values(), {name: getattr(family, name) for name in names})


def _of_source(record: TokenRecord, tower: TextTower) -> list[str]:
    own = tower.default_tokenizer
    return [] if record.source == own else [f"tokenizer {record.source}, of the tower's own {own}"]


def _told(names: list[str], mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [f"{name} {mine[name]}, there {theirs[name]}" for name in names]


def family_of(tower: TextTower) -> Family | None:
    """What is known of the checkpoints that a tower's architecture is for.

    SigLIP (Zhai et al. 2023) pads all captions to 64 tokens and pools the last one; its text was lower-cased and freed
    of punctuation (big_vision's ``canonicalize_text``). SigLIP 2 lower-cased alone and pads with 0; it is told from
    SigLIP by the 256,000 ids of its vocabulary. open_clip cleans for both in the same way. CLIP reads 77 tokens,
    lower-cased; what fills up does not matter to it, since it pools the closing token and looks only back.
    """
    trunk: Any = getattr(tower, "trunk", None)
    kind = str(getattr(getattr(trunk, "config", None), "model_type", ""))
    if kind.startswith("siglip"):
        second = tower.vocab_size >= 256_000
        name = "SigLIP 2" if second else "SigLIP"
        length = int(trunk.config.max_position_embeddings)
        return Family(name, length, 0 if second else 1, lower_cases=True, strips_punctuation=None if second else True)
    if kind.startswith("clip"):
        return Family("CLIP", int(trunk.config.max_position_embeddings), lower_cases=True)
    if tower.default_tokenizer.startswith("open_clip:"):
        return _of_open_clip(tower.default_tokenizer.partition(":")[2])
    return None


def _of_open_clip(name: str) -> Family | None:
    import open_clip

    from siglightning.models.open_clip_towers import resolve_model_name

    resolved = resolve_model_name(name)
    text = (open_clip.get_model_config(resolved) or {}).get("text_cfg") if ":" not in resolved else None
    if text is None:
        return None
    cleans = text.get("tokenizer_kwargs", {}).get("clean") == "canonicalize"
    simple = "hf_tokenizer_name" not in text  # CLIP's own vocabulary, which lower-cases
    lower = True if cleans or simple else None
    return Family(name, int(text.get("context_length", 77)), None, lower, True if cleans else None)
