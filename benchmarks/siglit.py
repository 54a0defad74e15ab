"""SigLiT on the embedded drawings: features of two pre-trained towers once, then three seeds of two projections.

    python -m benchmarks.siglit --runs DIR            # features go to DIR/features, runs to DIR/seed-0 ...
    python -m benchmarks.siglit --runs DIR --write    # and the table to benchmarks/results/siglit.md

Needs the extra `pretrained-demo`. The split of concepts and styles is the same for every seed.
"""

import argparse
from pathlib import Path

from benchmarks.quickstart import circumstances, report, run_seed, timed

RESULTS = Path(__file__).parent / "results" / "siglit.md"
VIEWS = 3


def main() -> None:
    """Embed, run the seeds one after the other, print the table, and write it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="new directory for features and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    recipe, features = ["--config", "recipe/siglit_demo"], args.runs / "features"
    seconds, mebibytes = timed(["embed", *recipe, "--run_dir", str(features), "--views", str(VIEWS)])
    data = ["--data=EmbeddingDataModule", f"--data.root={features}", "--data.global_batch_size=512"]
    table = report([run_seed(seed, args.runs / f"seed-{seed}", [*recipe, *data]) for seed in range(args.seeds)])
    once = f"Features of all pictures and of {VIEWS} views of captions, once: {seconds:.0f} s, {mebibytes:.0f} MiB."
    text = f"{table}\n\n{once}\n\n`python -m benchmarks.siglit --seeds {args.seeds}`; {circumstances()}\n"
    print(text)
    if args.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
