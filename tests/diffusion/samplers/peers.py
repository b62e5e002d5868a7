"""The loops of diffusers' schedulers, to which our samplers are compared."""

import torch

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
KINDS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


def settings(schedule: str, kind: str) -> dict:
    """Our schedule, timesteps and prediction type in diffusers' words."""
    return {
        "beta_schedule": SCHEDULES[schedule],
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "prediction_type": KINDS[kind],
        "timestep_spacing": "trailing",
    }


def network(x_t, t):
    """A network that depends on both inputs, and whose estimates of x_0 are partly clipped."""
    return 0.4 * x_t + 0.05 * torch.sin(t.float() / 100).view(-1, 1, 1, 1, 1)


def diffusers_sample(scheduler, x):
    """The reverse process in a scheduler's own variables; ``x`` is scaled to them."""
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t[None])
        x = scheduler.step(output, t, x).prev_sample
    return x.clamp(-1, 1)
