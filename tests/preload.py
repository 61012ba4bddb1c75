"""Imported once by the parent of all test runs."""

import dataflex.base.data
import dataflex.base.launch
import dataflex.base.train
import dataflex.trainer
import llamafactory.train.dpo.trainer
import llamafactory.train.tuner
