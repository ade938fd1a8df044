"""What is generated after training, and how a record finds what it depends on."""

from .base import ACRecordTemp, RecordTemp
from .signal import SigAnaRecord, SignalRecord

__all__ = ["ACRecordTemp", "RecordTemp", "SigAnaRecord", "SignalRecord"]
