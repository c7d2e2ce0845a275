"""For scripts that train with TRL: its `DPOTrainer` with a term on hidden states, and a monitor for any
`Trainer`.

    from trimtab.trl import InnerDPOTrainer  # in place of: from trl import DPOTrainer
"""

from trimtab.errors import ConfigError

try:
    import trl as _trl  # noqa: F401
except ImportError as error:
    raise ConfigError("trimtab.trl: TRL is not installed (pip install 'trl>=1.16')") from error

from trimtab.trl.monitor import InnerMonitor
from trimtab.trl.trainer import InnerDPOTrainer

__all__ = ["InnerDPOTrainer", "InnerMonitor"]
