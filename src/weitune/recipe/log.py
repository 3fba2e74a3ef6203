"""The recipe's group ``log``: where figures go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weitune.recipe.section import SPLIT_AT_COMMAS, Section


class Log(Section):
    """Where figures go besides the run's folder."""

    trackers: Annotated[list[Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow"]], SPLIT_AT_COMMAS] = Field(
        []
    )
    """Trackers that get the figures of every step and evaluation, through accelerate; each needs the extra of its
    name. TensorBoard, wandb and SwanLab write into the run's folder, below `logs`, MLflow and trackio where
    `MLFLOW_TRACKING_URI` and `TRACKIO_DIR` say."""
