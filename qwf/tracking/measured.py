"""The metrics of one run: logging into it, reading from it, and what is left of them at its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from ..errors import CorruptRecordError, FormatVersionError, RecorderNotFoundError, UnsafeNameError
from ..process import exits
from .metric_log import MetricLog, write_waiting
from .metric_values import column_of_steps, columns_of_values, whole_step
from .metrics import current, history
from .run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MeasuredRun"]

_logger: Final = logging.getLogger("qwf.tracking")


class MeasuredRun(Run):
    """A run into which metrics are logged; see `Run`. Public as `Recorder`."""

    _metric_log: MetricLog | None = None

    def log_metrics(self, /, step: int | None = None, **metrics: Any) -> None:
        """Log the values of metrics at a step (None means 0).

        Raises
        ------
        TypeError
            If a value is no number, or the step no whole number of 64 bits. Nothing was logged,
            and later calls work.
        RecorderNotFoundError
            If the recorder was deleted.

        Notes
        -----
        *Readers* in this process see a value at once, others after a fifth of a second at most.
        *A crash* or ``kill -9`` loses that fifth, and only of values that come faster than ten
        times a second. The loss of power loses nothing from before the last `end_run`.

        *A full or failing disk* is never raised here: values wait in memory, up to a million, and
        are tried again. That is logged as an error; if it lasts until `end_run`, that raises it.
        (A run that has ended raises it at once.)
        """
        if not metrics:
            return
        if "" in metrics:
            raise UnsafeNameError("a metric", "", "a non-empty string is expected")
        if type(step) is not int or not -(2**63) <= step < 2**63:
            step = 0 if step is None else whole_step(step)
        log = self._metric_log or self._new_log()
        try:
            log.append(metrics, step)
        except FileNotFoundError as error:
            raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id) from error
        # The `end_run` of this process sums up. One elsewhere may have been already.
        if not exits.is_open(self.id or ""):
            self._logged_beside(log)

    def log_metric_history(self, metrics: Any, steps: Any = None) -> None:
        """Log many values of each metric at once.

        Parameters
        ----------
        metrics : DataFrame or mapping of str to sequence
            Name -> values, all of one length: lists, arrays, series. NaN is a value.
        steps : sequence of int, optional
            The step of each row. Default: the index of the frame if it is one of integers, else
            0, 1, 2 ...

        Raises
        ------
        TypeError, ValueError
            If a name, value or step is impossible, or the lengths differ. Nothing was logged.
        RecorderNotFoundError
            If the recorder was deleted.

        Notes
        -----
        As for `log_metrics`, but written at once.
        """
        columns = columns_of_values(metrics)
        length = len(next(iter(columns.values()), ()))
        column = column_of_steps(metrics, steps, length)
        if not length:
            return
        log = self._metric_log or self._new_log()
        try:
            log.extend(column, columns)
        except FileNotFoundError as error:
            raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id) from error
        if not exits.is_open(self._known_id()):
            self._logged_beside(log)

    def _new_log(self) -> MetricLog:
        self._metric_log = MetricLog(self._directory)
        return self._metric_log

    def _logged_beside(self, log: MetricLog) -> None:
        """Finish logging into a run that no `end_run` of this process will end."""
        if self._refreshed().status == self.STATUS_R:
            self._write_at_exit(log.flush())
            return
        failure = self._close_metrics()
        self._sum_up()
        if failure is not None:
            raise failure

    def _logged_meanwhile(self, log: MetricLog, others: dict[str, int]) -> OSError | None:
        """Catch up on threads and other processes that have logged while the run was ended.

        They saw it still going. From now on they see that it has ended, and sum up themselves.
        """
        known = self._metric_log is None or self._metric_log.is_closed
        failure = self._close_metrics()
        if not known or log.others() != others:
            self._sum_up()
        return failure

    def list_metrics(self) -> dict[str, float]:
        """Return the value of each metric at its highest step (of equal steps, the last logged)."""
        record = self._refreshed()
        ended = record.status in (self.STATUS_FI, self.STATUS_FA)
        points = record.metrics if ended else current(self._directory)
        return {key: point.value for key, point in points.items()}

    def metric_history(self, *keys: str) -> pd.DataFrame:
        """Return what was logged, oldest first.

        Parameters
        ----------
        *keys : str
            The metrics wanted; none means all.

        Returns
        -------
        DataFrame
            Columns ``key`` (str), ``step`` (int), ``time`` (datetime64[ns, UTC]), ``value``
            (float); one row per value.
        """
        return history(self._directory, keys)

    def _close_metrics(self) -> OSError | None:
        """Make what this process has logged durable; return the error if that fails."""
        write_waiting(self._directory)  # through other objects than this one
        failure = None if self._metric_log is None else self._metric_log.close()
        self._write_at_exit(failure)
        return failure

    def _write_at_exit(self, failure: OSError | None) -> None:
        """Have the end of the program try again what was refused."""
        key, log = f"metrics of {self.id}", self._metric_log
        if failure is None or log is None or log.is_closed:
            exits.release(key)
        else:
            exits.keep(key, log.write_at_exit)

    def _summary(self) -> dict[str, Any]:
        log = self._metric_log or MetricLog(self._directory)
        try:
            points = log.summary()
        except (CorruptRecordError, FormatVersionError) as error:
            # The status has to become true all the same; the check tells of the damage again.
            _logger.error("%s The metrics of recorder %s may be incomplete.", error, self.id)  # noqa: TRY400
            points = log.summary(others=False)
        return {
            key: {
                "value": one.value if one.value - one.value == 0 else repr(one.value),
                "step": one.step,
                "time": one.time,
            }
            for key, one in points.items()
        }

    def _sum_up(self) -> None:
        summary = self._summary()
        self._update(lambda doc: {**doc, "metrics": {**doc["metrics"], **summary}})
