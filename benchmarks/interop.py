"""A trained run in other libraries and back: how far its numbers are from ours, over all pairs of both test sets.

    python -m benchmarks.interop runs/quickstart runs/pocket_siglip            # every format that holds the network
    python -m benchmarks.interop runs/quickstart runs/pocket_siglip --write    # and benchmarks/results/interop.md

Pictures are the embedded drawings in the network's own size, captions their names and keywords. Each format is written,
read back by the other library alone, tokenizer and preprocessing included, and then loaded by us again. A difference is
the largest of unit embeddings, and of ``exp(t') x.y + b`` over every picture with every caption.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quickstart import circumstances
from siglightning.batch import InputSpec
from siglightning.commands.export.source import Source, read_source
from siglightning.commands.export.verify import same_ids, verify
from siglightning.data import PictogramDataModule
from siglightning.evaluation import ranks_both_ways
from siglightning.models import TwoTower
from siglightning.models.export import FORMATS, Outputs, Reloaded, refusal
from siglightning.models.interop import build, open_checkpoint

RESULTS = Path(__file__).parent / "results" / "interop.md"
HEADER = (
    "| run | read by | pictures | captions | logits | recall@1, 5, 10 both ways | tokens | resized pixels, of 255 |\n"
    "| --- | --- | ---: | ---: | ---: | --- | --- | ---: |"
)
CUTOFFS = (1, 5, 10)
Set = tuple[Tensor, list[str], Tensor]


def test_sets(network: TwoTower) -> list[Set]:
    """Pictures uint8 ``[N, 3, S, S]``, captions, and int64 ``[N]`` numbers of their names, of both test sets."""
    data = PictogramDataModule(global_batch_size=16, eval_captions="description")
    data.build(InputSpec(network.image_size, network.tokenizer, resizing=network.resizing))
    found = []
    for name in ("seen_concepts", "unseen_concepts"):
        samples = data.test_sets[name].__getitems__(range(len(data.test_sets[name])))
        ids = torch.tensor([sample["match_id"] for sample in samples])
        found.append((torch.stack([s["image"] for s in samples]), [s["captions"][0] for s in samples], ids))
    return found


@torch.no_grad()
def outputs(network: TwoTower, pictures: Tensor, captions: list[str]) -> Outputs:
    """What our own network says, 128 at a time."""
    images = torch.cat([network.encode_image(part) for part in pictures.split(128)])
    texts = torch.cat([network.encode_text(part) for part in network.tokenizer(captions).split(128)])
    bias = 0.0 if network.bias is None else network.bias
    return Outputs(images, texts, network.log_scale.exp() * images @ texts.T + bias)


def difference(ours: Outputs, theirs: Outputs) -> list[float]:
    """Largest absolute differences of picture embeddings, of caption embeddings, of logits."""
    return [float((a.double() - b.double()).abs().max()) for a, b in zip(ours, theirs, strict=True)]


def recalls(out: Outputs, ids: Tensor) -> list[float]:
    """recall@1, 5 and 10, picture to caption and then caption to picture."""
    ways = ranks_both_ways(out.image, out.text, ids, ids)
    return [(ranks <= k).double().mean().item() for ranks in ways for k in CUTOFFS]


def compare(source: Source, other: Callable[[Tensor, list[str]], Outputs]) -> tuple[list[float], bool]:
    """The largest differences over both test sets, and whether all recalls are the same."""
    worst, same = [0.0, 0.0, 0.0], True
    for pictures, captions, ids in test_sets(source.network):
        ours, theirs = outputs(source.network, pictures, captions), other(pictures, captions)
        worst = [max(pair) for pair in zip(worst, difference(ours, theirs), strict=True)]
        same = same and recalls(ours, ids) == recalls(theirs, ids)
    return worst, same


def same_tokens(network: TwoTower, theirs: Reloaded) -> bool:
    """Whether both tokenizers give every caption the same ids, padding aside."""
    captions = [caption for _, captions, _ in test_sets(network) for caption in captions]
    return same_ids(network, theirs, network.tokenizer(captions), theirs.tokens(captions))


def rows_of(run: Path) -> Iterator[str]:
    """Lines of the table for one run: out to each format that holds it, and back."""
    source = read_source(str(run))
    for name, form in FORMATS.items():
        if refusal(source.network, name) is not None:
            yield f"| {run.name} | {name} | cannot hold it | | | | | |"
            continue
        with tempfile.TemporaryDirectory() as folder:
            form.write(source.network, Path(folder), source.arguments)
            form.settle(Path(folder), Path(folder))
            theirs = form.reload(Path(folder))

            def by_them(pictures: Tensor, captions: list[str], theirs: Reloaded = theirs) -> Outputs:
                return theirs.outputs(theirs.pixels(list(pictures)), theirs.tokens(captions))

            tokens = "equal" if same_tokens(source.network, theirs) else "DIFFERENT"
            pixels = f"{tokens} | {verify(source.network, theirs).grey_levels:.2g}"
            yield _row(run, f"{form.library} {version(_PACKAGES[name])}", *compare(source, by_them), pixels)
            if name != "onnx":  # whose weights have no names
                again = build(open_checkpoint(folder), {})[0].eval()

                def by_us(pictures: Tensor, captions: list[str], again: TwoTower = again) -> Outputs:
                    return outputs(again, pictures, captions)

                yield _row(run, f"back from {name}", *compare(source, by_us), " | ")


_PACKAGES = {
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "safetensors": "siglightning",
    "onnx": "onnxruntime",
}


def _row(run: Path, reader: str, worst: list[float], same: bool, rest: str) -> str:
    cells = " | ".join(f"{value:.2g}" for value in worst)
    return f"| {run.name} | {reader} | {cells} | {'same' if same else 'OTHER'} | {rest} |"


def main() -> None:
    """Compare every run in every format, print the table, and write it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    for run in args.runs:
        for line in rows_of(run):
            print(line, flush=True)
            lines.append(line)
    scales = [f"{run.name} at t = {read_source(str(run)).network.log_scale.exp().item():.3g}" for run in args.runs]
    names = " ".join(run.name for run in args.runs)
    text = f"{', '.join(scales)}; `python -m benchmarks.interop {names}`; {circumstances()}"
    print(f"\n{text}")
    if args.write:
        RESULTS.write_text("\n".join(lines) + f"\n\n{text}\n")


if __name__ == "__main__":
    main()
