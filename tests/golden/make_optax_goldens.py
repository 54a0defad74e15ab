"""Make `optax.json`: what optax computes, composed as big_vision composes it, for tests of our optimizers.

    python -m venv /tmp/optax && /tmp/optax/bin/pip install jax==0.10.2 optax==0.2.8
    /tmp/optax/bin/python tests/golden/make_optax_goldens.py

Run once; the tests need neither optax nor jax. In each step big_vision (its `optax.py`) subtracts
``sched * (lr * lr_mult * u + wd * wd_mult * p)``, u the direction of an optimizer without rate and decay, sched the
schedule's factor. The chains named `torch` are optax's own `adamw` and `lion`, whose decay is multiplied by the rate,
as in PyTorch.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from inputs import LR, PARAMETERS, RUN, STEPS, STORED_STEPS, WARMUP, WEIGHT_DECAY, entries, value


def schedule(step: jax.Array | int) -> jax.Array:
    """A rise that learns from its first step on, then half a cosine; what `siglightning.optim.Schedule` says."""
    rise = optax.linear_schedule(1 / WARMUP, 1.0, WARMUP - 1)
    return optax.join_schedules([rise, optax.cosine_decay_schedule(1.0, RUN - WARMUP)], [WARMUP])(step)


def capped_decay(step: jax.Array, exponent: float) -> jax.Array:
    """beta2 of step t: ``1 - t^-0.8`` (Adafactor), capped (Scaling Vision Transformers) at .95 (SigLIP paper, 4.7)."""
    return jnp.minimum(0.95, 1.0 - (step.astype(jnp.float32) + 1.0) ** -exponent)


def adafactor(dtype: Any) -> optax.GradientTransformation:
    """Factored second moments, then a mean of updates that is not debiased and kept in ``dtype``."""
    moments = optax.scale_by_factored_rms(
        decay_rate=0.8, min_dim_size_to_factor=32, epsilon=1e-30, decay_rate_fn=capped_decay
    )
    return optax.chain(moments, optax.ema(0.9, debias=False, accumulator_dtype=dtype))


def big_vision(direction: optax.GradientTransformation, *, all_decay: bool = False) -> optax.GradientTransformation:
    """Multipliers on the rate, then decay without the rate, then the schedule over both; ``all_decay``: of all."""
    rates = {name: LR * rate for name, (_, rate, _) in PARAMETERS.items()}
    matrices = {name for name, (shape, _, _) in PARAMETERS.items() if len(shape) > 1}
    shares = {name: float(name in matrices) if all_decay else decay for name, (_, _, decay) in PARAMETERS.items()}
    decays = {name: WEIGHT_DECAY * share for name, share in shares.items()}
    scale = optax.stateless(lambda updates, _: {name: rates[name] * updates[name] for name in updates})
    decay = optax.stateless(lambda updates, params: {n: updates[n] + decays[n] * params[n] for n in updates})
    return optax.chain(direction, scale, decay, optax.scale_by_schedule(schedule), optax.scale(-1.0))


def torch_like(maker: Callable[..., Any], **kwargs: Any) -> optax.GradientTransformation:
    """optax's own optimizer, with the same rate and decay for every parameter."""
    return maker(lambda step: LR * schedule(step), weight_decay=10 * WEIGHT_DECAY, **kwargs)


def run(optimizer: optax.GradientTransformation) -> dict[str, list[list[float]]]:
    """Stored entries of each parameter after the stored steps."""
    params = {name: jnp.asarray(value(name, 0)) for name in PARAMETERS}
    state = optimizer.init(params)
    history: dict[str, list[list[float]]] = {name: [] for name in PARAMETERS}
    for step in range(1, STEPS + 1):
        gradients = {name: jnp.asarray(value(name, step)) for name in PARAMETERS}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, tensor in params.items() if step in STORED_STEPS else ():
            found = np.asarray(tensor).ravel()[entries(tensor.size)]
            history[name].append([float(f"{x:.9g}") for x in found])  # 9 digits give back every fp32 number
    return history


def main() -> None:
    """Run every chain and write the file beside this script."""
    chains = {
        "lion": big_vision(optax.scale_by_lion(b1=0.9, b2=0.99)),
        "adamw": big_vision(optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)),
        "adafactor float32": big_vision(adafactor(jnp.float32)),
        "adafactor bfloat16": big_vision(adafactor(jnp.bfloat16)),
        "adafactor decayed": big_vision(adafactor(jnp.float32), all_decay=True),
        "lion torch": torch_like(optax.lion, b1=0.9, b2=0.99),
        "adamw torch": torch_like(optax.adamw, b1=0.9, b2=0.95, eps=1e-8),
    }
    result = {
        "command": "python tests/golden/make_optax_goldens.py",
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "python": platform.python_version()},
        "schedule": [float(f"{schedule(step):.9g}") for step in range(STEPS)],
        "parameters": {name: run(chain) for name, chain in chains.items()},
    }
    path = Path(__file__).with_name("optax.json")
    path.write_text(json.dumps(result).replace("]], ", "]],\n") + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
