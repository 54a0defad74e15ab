"""Whether captions become the ids that the text tower knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, Level, NotApplicableError
from siglightning.commands.doctor.origin import Origin
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
    """Compare the tokenizer with the tower, and with what the tower's weights were trained with.

    What the checkpoint tells comes first: the record of its run, or its own tokenizer. What is known of the family of
    the tower stands in where it tells nothing, and beside it for models of other libraries, some of whose tokenizers
    were saved without the cleaning that the model was trained with.
    """
    network = case.base_task.network
    if not isinstance(network, TwoTower) or case.base_task.input_spec.tokenizer is None:
        raise NotApplicableError("no text is read")
    tower, record, origin = network.text_tower, TokenRecord.of(network.tokenizer), case.origin
    yield _of_tower(tower, record)
    told = origin.described.text if origin.brings("text_tower") else None
    family = family_of(tower)
    if told is not None:
        differences = _differences(record, told, tower)
        level: Level = "warning" if set(differences) == {"rare_ids"} else "error"
        yield _compared(differences, f"for {_source(origin)}", level, told.source)
        if origin.kind == "run" or differences or family is None:
            return
        unlike = _of_family(record, family)
        if unlike:
            yield _compared(unlike, f"{family.name} was trained", "warning", None)
    else:
        yield from _without_record(record, tower, family, origin)


def _without_record(record: TokenRecord, tower: TextTower, family: Family | None, origin: Origin) -> Iterator[Finding]:
    """The comparison where no checkpoint tells how its captions became ids."""
    trained = origin.trained("text_tower")
    if origin.brings("text_tower"):
        why = origin.described.unknown or "nobody recorded it"
        text = f"{_source(origin)} does not tell with which tokenizer its text tower was trained ({why})"
        yield Finding("warning", text, "Compare `tokenizer`, `context_length` and `canonicalize` with its own.")
    if family is not None:
        differences = _of_family(record, family)
        if trained and not origin.brings("text_tower"):
            differences |= _of_source(record, tower)
        yield _compared(differences, f"{family.name} was trained", "error" if trained else "warning", None)
    elif trained and not origin.brings("text_tower"):
        own = tower.default_tokenizer
        yield _compared(_of_source(record, tower), f"for the tower's weights, {own}", "error", own)


def _source(origin: Origin) -> str:
    return f"the run of {origin.checkpoint}" if origin.kind == "run" else str(origin.checkpoint)


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


Differences = dict[str, tuple[Any, Any]]  # what differs -> here, there


def _compared(differences: Differences, what: str, level: Level, source: str | None) -> Finding:
    """A finding of differences from the tokenizer ``source``, or from one that is known by its rules alone."""
    values = {"differences": {name: {"here": mine, "there": theirs} for name, (mine, theirs) in differences.items()}}
    if not differences:
        return Finding("ok", f"captions become ids as {what}", values=values)
    told = "; ".join(f"{name} {mine}, there {theirs}" for name, (mine, theirs) in differences.items())
    return Finding(level, f"not as {what}: {told}", _remedy(differences, source), values=values)


def _remedy(differences: Differences, source: str | None) -> str:
    """Which settings of the network to change."""
    theirs = {name: there for name, (_, there) in differences.items()}
    settings = []
    if {"tokenizer", "vocab_size", "pad_id", "ids", "rare_ids"} & set(theirs):
        source = source or theirs.get("tokenizer")
        settings.append(f"`tokenizer: {source}`" if source else "a `tokenizer` of the same vocabulary and padding")
    if "context_length" in theirs:
        settings.append(f"`context_length: {theirs['context_length']}`")
    if "strips_punctuation" in theirs:
        settings.append(f"`canonicalize: {str(theirs['strips_punctuation']).lower()}`")
    elif "lower_cases" in theirs:
        settings.append(f"`tokenizer: {source}`" if source else "a `tokenizer` that lower-cases, or captions that are")
    return f"Set in the network {' and '.join(dict.fromkeys(settings))}, as these weights were trained."


def _differences(record: TokenRecord, told: TokenRecord, tower: TextTower) -> Differences:
    """What another record says otherwise; the name of its tokenizer alone does not matter."""
    mine, theirs = record.values(), told.values()
    unseen = {"source", "ids"} | (set() if sees_padding(tower) else {"pad_id"})
    found = {name: (mine[name], theirs[name]) for name in mine if name not in unseen and mine[name] != theirs[name]}
    if not {"lower_cases", "strips_punctuation", "vocab_size"} & set(found):  # these change ids as well
        found |= _of_ids(record, told)
    return found


def _of_ids(record: TokenRecord, told: TokenRecord) -> Differences:
    """Which captions get other ids: with another vocabulary all, with other cleaning at its edges some.

    Libraries do not agree on an underscore or a quotation mark; the first caption has letters and commas alone.
    """
    pairs = list(zip_longest(record.ids.split("-"), told.ids.split("-")))
    other = sum(mine != theirs for mine, theirs in pairs)
    name = "ids" if pairs[0][0] != pairs[0][1] else "rare_ids"
    there = f"others for {other} of {len(pairs)} awkward captions ({told.source})"
    return {name: (f"those of {record.source}", there)} if other else {}


def _of_family(record: TokenRecord, family: Family) -> Differences:
    names = ("context_length", "pad_id", "lower_cases", "strips_punctuation")
    expected = {name: getattr(family, name) for name in names if getattr(family, name) is not None}
    return {name: (getattr(record, name), there) for name, there in expected.items() if getattr(record, name) != there}


def _of_source(record: TokenRecord, tower: TextTower) -> Differences:
    own = tower.default_tokenizer
    return {} if record.source == own else {"tokenizer": (record.source, own)}


def sees_padding(tower: TextTower) -> bool:
    """Whether features depend on the id that fills up captions.

    They do not where a tower masks it, nor where it looks back alone and pools the token that closes the text, as CLIP.
    Towers that mask look for an id of their own, which is compared elsewhere; theirs counts as seen.
    """
    trunk: Any = getattr(tower, "trunk", None)
    if str(getattr(getattr(trunk, "config", None), "model_type", "")).startswith("clip"):
        return False
    looks_back = getattr(trunk, "attn_mask", None) is not None  # of open_clip
    return not (looks_back and getattr(trunk, "pool_type", "") in ("argmax", "eos"))


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
