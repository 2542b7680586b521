"""The tests of timm's that name the models they are for, called with our architectures.

Run by `run.py` beside timm's test file, which must have been collected before this one.
"""

import pytest
import timm

from tests import test_models as suite  # timm's, not ours

per_architecture = pytest.mark.parametrize('model_name', timm.list_models())


@per_architecture
def test_head_hidden_size(model_name):
    suite.test_head_hidden_size(model_name, {})


@per_architecture
def test_reset_classifier_keeps_pool(model_name):
    suite.test_reset_classifier_keeps_pool(model_name)


@per_architecture
def test_prune_intermediate_layers_params_used(model_name):
    suite.test_prune_intermediate_layers_params_used(model_name)


@per_architecture
def test_prune_to_stem_feature(model_name):
    suite.test_prune_to_stem_feature(model_name)


@per_architecture
def test_forward_after_prune_intermediate_layers(model_name):
    suite.test_forward_after_prune_intermediate_layers(model_name)


@per_architecture
def test_prune_intermediate_layers_last_feature(model_name):
    suite.test_prune_intermediate_layers_last_feature(model_name, True)
