"""Parameter-efficient fine-tuning: LoRA, bottlenecks, prefixes, BitFit and sparse changes of a model that stays.

`zoo.train --peft.method ...` trains one, `zoo.load(..., adapter=...)` puts some into a model; see docs/peft.md.
"""

from zoo.peft.adapted import AdaptedModel as AdaptedModel
from zoo.peft.adapted import adapted_model as adapted_model
from zoo.peft.adapted import first_parameters as first_parameters
from zoo.peft.adapted import put_together as put_together
from zoo.peft.adapter import Adapter as Adapter
from zoo.peft.adapter import base_fingerprint as base_fingerprint
from zoo.peft.adapter import check_adapter as check_adapter
from zoo.peft.config import PeftConfig as PeftConfig
from zoo.peft.mixture import merged as merged
from zoo.peft.mixture import with_adapters as with_adapters
from zoo.peft.report import trainable_report as trainable_report
