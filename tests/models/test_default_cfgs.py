"""The architecture keeps its classes and image size where its first published checkpoint has others."""

import pytest
import timm

from ride_timm.models import _factory
from ride_timm.records import published
from ride_timm.records.published import published_weights


class TestDefaults:
    NAME, TAGGED = 'ride_resnet50_4e', 'ride_resnet50_4e.ride_tinyimagenetlt'

    @pytest.mark.parametrize('experts', [2, 3, 4, 6])
    def test_siblings_are_alike(self, experts):
        cfg = timm.get_pretrained_cfg(f'ride_resnet50_{experts}e')
        assert (cfg.num_classes, cfg.input_size) == (1000, (3, 224, 224))

    def test_the_checkpoint_has_its_own(self):
        cfg = timm.get_pretrained_cfg(self.TAGGED)
        assert (cfg.num_classes, cfg.input_size) == (200, (3, 64, 64))
        assert timm.is_model_pretrained(self.TAGGED)
        assert timm.list_pretrained(f'{self.NAME}*') == [self.TAGGED]
        assert 'ride_resnet32_3e.ride_cifar100lt' in timm.list_pretrained('ride_*')
        assert timm.is_model_pretrained('ride_resnet32_3e')

    def test_pretrained_means_the_first_checkpoint_and_says_so(self, monkeypatch, caplog):
        monkeypatch.setattr(published.PublishedCheckpoint, 'load', lambda self, cache_dir: self.name)
        kwargs = {}
        made_with = _factory._use_published(self.NAME, kwargs)
        assert made_with == published_weights()[self.TAGGED].model_args
        assert kwargs['pretrained_cfg_overlay']['state_dict'] == self.TAGGED
        assert kwargs['pretrained_cfg'] == 'ride_tinyimagenetlt'
        assert f'loads {self.TAGGED}, 200 classes at 64x64' in caplog.text
