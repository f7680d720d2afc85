"""The draft: the target with some sublayers left out, over the same tensors."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from swift_sd.model.layer_set import LayerSet
from swift_sd.model.stubs import shared_copy_along
from swift_sd.model.sublayers import Sublayers
from swift_sd.model.view import View


class DraftView(View):
    """Only the modules on the way to the decoder layers are new, and layers with one sublayer left.

    A skipped sublayer costs next to nothing: its norms, projections and cache rows are not
    computed. A layer without both is not entered. Making a view takes milliseconds, changing its
    layer set microseconds.

    Args:
        model: the target; it is not changed.
        sublayers: what `find_sublayers(model)` found.
        layer_set: what to skip at first.
    """

    shortlist = None  # it reads the whole head

    def __init__(self, model: PreTrainedModel, sublayers: Sublayers, layer_set: LayerSet) -> None:
        layers = model.get_submodule(".".join(sublayers.path))
        self._variants = [
            {
                (attention, mlp): parts.skipping(layer, attention=attention, mlp=mlp)
                for attention in (False, True)
                for mlp in (False, True)
            }
            for layer, parts in zip(layers.children(), sublayers.parts, strict=True)
        ]
        module = shared_copy_along(model, sublayers.path, {})
        self._layers: nn.Module = module.get_submodule(".".join(sublayers.path))
        super().__init__(module)
        self.use(layer_set)

    def use(self, layer_set: LayerSet) -> None:
        """Skip exactly the sublayers in `layer_set` from now on.

        Raises:
            LayerSetError: the set is for a model of another depth.
        """
        layer_set.check_depth(len(self._variants))
        for index, variants in enumerate(self._variants):
            skipped = (index in layer_set.attention, index in layer_set.mlp)
            self._layers._modules[str(index)] = variants[skipped]
        self.layer_set = layer_set
