"""What the sink is told: by rank 0 a line a step and what happened, by every rank its progress."""

import math
from contextlib import suppress

from igpt.errors import IgptError, Unreachable
from igpt.model.config import ModelConfig
from igpt.training.agreement import Agreement, Pending
from igpt.training.checkpoint import Written
from igpt.training.sink import Sink
from igpt.training.throughput import throughput


class Reporter:
    """Speaks to the sink of one rank; of progress alone where that is not rank 0.

    peak: FLOP/s of one device, None where it is not known.
    """

    def __init__(
        self,
        sink: Sink,
        model: ModelConfig,
        *,
        rank: int,
        steps: int,
        global_batch: int,
        peak: float | None,
    ) -> None:
        self._sink = sink
        self._rank = rank
        self._model = model
        self._steps = steps
        self._batch = global_batch
        self._peak = peak
        self._validation: dict[str, object] = {"validation_loss": None, "validation_step": None}
        self._progress: dict[str, object] = {}

    def event(self, kind: str, **fields: object) -> None:
        """Something happened."""
        if self._rank == 0:
            self._sink.event(kind, **fields)

    def alive(self) -> None:
        """Says the latest progress again."""
        if self._progress:
            self._sink.progress(**(self._progress | self._validation))

    def trained(self, pending: Pending, agreed: Agreement) -> None:
        """The steps that the workers have just agreed on.

        Raises IgptError, on every rank, where a loss is no longer a number.
        """
        count = len(agreed.losses)
        bad = next((n for n, loss in enumerate(agreed.losses) if not math.isfinite(loss)), count)
        self._lines(pending, agreed, bad)
        if bad < count:
            if self._rank == 0:
                with suppress(Unreachable):  # the loss is the news
                    self._sink.flush()
            raise IgptError(
                f"the loss of step {pending.steps[bad]} is {agreed.losses[bad]}",
                expected="a number",
                mend="Lower optimizer.learning_rate, or set optimizer.clip.",
            )

    def validated(self, step: int, loss: float) -> None:
        """The validation loss after `step`, nats per token."""
        self._validation = {"validation_loss": loss, "validation_step": step}
        if self._rank == 0:
            self._sink.metrics([{"step": step, "validation_loss": loss}])
        self.event("validated", step=step, loss=loss)
        self.alive()

    def checkpointed(self, written: Written) -> None:
        """A checkpoint is committed and has been read back."""
        self.event(
            "checkpointed",
            step=written.ref.step,
            key=written.ref.key,
            seconds=round(written.seconds, 3),
            bytes=written.bytes,
        )

    def _lines(self, pending: Pending, agreed: Agreement, count: int) -> None:
        """Metrics of the first `count` of these steps, and the latest for whoever looks on."""
        if count == 0:
            return
        speed = throughput(
            steps=len(agreed.losses),
            seconds=agreed.seconds,
            waits=agreed.waits,
            global_batch=self._batch,
            positions=self._model.positions,
            flops_per_token=self._model.training_flops_per_token(),
            peak=self._peak,
        )
        if self._rank == 0:
            self._sink.metrics(
                [
                    {
                        "step": pending.steps[n],
                        "loss": agreed.losses[n],
                        "digest": f"{agreed.digests[n]:016x}",
                        "learning_rate": pending.rates[n],
                        "tokens_per_second": speed.tokens_per_second,
                        "data_wait": speed.data_wait,
                    }
                    for n in range(count)
                ]
            )
        step = pending.steps[count - 1]
        self._progress = {
            "done": step,
            "total": self._steps,
            "unit": "steps",
            "loss": agreed.losses[count - 1],
            "learning_rate": pending.rates[count - 1],
            "tokens_per_second": speed.tokens_per_second,
            "images_per_second": speed.images_per_second,
            "mfu": speed.mfu,
            "data_wait": speed.data_wait,
            "own_data_wait": min(1.0, agreed.waits[self._rank] / agreed.seconds),
            "seconds_left": (self._steps - step) * self._batch / speed.images_per_second,
        }
        self._sink.progress(**(self._progress | self._validation))
