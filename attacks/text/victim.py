"""The victim of an attack on text, as the attacker rebuilds it: the gradient of any embeddings.

Embeddings are fed in place of tokens, so no gradient reaches the table of token embeddings; and the
output layer is as wide as the vocabulary. Both are left out of what is matched: their gradients say
who is in the text (`tokens_named`), which labels (`attacks.text.predictions`) and how long it is.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.global_generators import global_generators
from attacks.network import require_sound_weights
from attacks.observation import (
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    gradient_of,
)
from attacks.text.language import LanguageModel, num_tokens_heard, text_known
from attacks.text.tokens import Tokens

_LOUD = 1.5
"""Times the length of a row of noise that a row has which is more than noise."""
OPEN = -1
"""Stands in a guess where the token is not known."""
_BACKGROUND = 10.0
"""Times the median row's length that the row of a token in the text has at least."""
_ROUNDING = 1e-7
"""Share of the gradient's length below which a tensor of it is rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextVictim:
    """A private copy of the language model in force, and the gradient heard from it.

    Attributes:
        model: The copy; of a head over tokens, without the output layer: it returns what that is
            fed with, (B, T, D).
        tokens: The vocabulary, and what is predicted.
        table: Token embeddings, (V, D).
        output_weight: Rows of the output layer, one per token or class, (V, D) or (K, D).
        output_bias: Of it; None where it has none.
        tied: Whether these rows are the token embeddings.
        target: The gradient to match, by parameter name, without tensors of a row per token.
        visible: 1 where a coordinate was heard, else 0; only for names not heard completely.
        table_gradient: Gradient heard of the token embeddings, (V, D); None if it was not.
        bias_gradient: Gradient heard of the output bias; None if it was not.
        position_gradient: Gradient heard of the position embeddings, (P, D); None if it was not.
        batch_size: B.
        length: T, of the longest example.
    """

    model: nn.Module
    tokens: Tokens
    table: Tensor
    output_weight: Tensor
    output_bias: Tensor | None
    tied: bool
    target: Mapping[str, Tensor]
    visible: Mapping[str, Tensor]
    table_gradient: Tensor | None
    bias_gradient: Tensor | None
    position_gradient: Tensor | None
    batch_size: int
    length: int

    @property
    def norm(self) -> float:
        """Length of the gradient to match."""
        return math.sqrt(sum(float(heard.square().sum()) for heard in self.target.values()))

    def known_places(self) -> Tensor:
        """Return the tokens that examples are made with, and `OPEN` elsewhere, (B, T).

        Of several examples it is not known where the shorter ones end.
        """
        places = torch.full((self.batch_size, self.length), OPEN, device=self.table.device)
        if self.tokens.start is not None:
            places[:, 0] = self.tokens.start
        if self.tokens.end is not None and self.batch_size == 1:
            places[:, -1] = self.tokens.end
        return places

    def gradient(
        self, loss: Tensor, *, differentiable: bool = True, again: bool = False
    ) -> dict[str, Tensor]:
        """Return the gradient of `loss` by what is matched; zero where it was not heard.

        Args:
            loss: Of a guess.
            differentiable: Whether to keep what it takes to differentiate once more.
            again: Whether to keep what it takes to call this again with the same graph.
        """
        parameters = dict(self.model.named_parameters())
        found = torch.autograd.grad(
            loss,
            [parameters[name] for name in self.target],
            create_graph=differentiable,
            retain_graph=differentiable or again,
            allow_unused=True,
            materialize_grads=True,
        )
        named = dict(zip(self.target, found, strict=True))
        for name, mask in self.visible.items():
            named[name] = named[name] * mask
        return named


def tokens_named(gradient: Tensor) -> Tensor:
    """Return the tokens whose embedding's gradient stands out: those in the text, and its labels.

    Where the output layer shares the embeddings, every row has a gradient, small but for these.

    Args:
        gradient: Of the token embeddings, (V, D).
    """
    lengths = gradient.norm(dim=1)
    return torch.nonzero(lengths > _BACKGROUND * lengths.median()).flatten()


def rebuild_text(seen: Observation, known: Knowledge) -> TextVictim:
    """Rebuild the victim behind one observation, in single precision, on its device.

    Raises:
        AttackFailed: Something needed was not heard or not granted, the update is several steps, it
            is zero or not finite, or the model draws random numbers.
    """
    language, tokens = text_known(known)
    architecture = cast(nn.Module, language)
    if known.batch_size is None:
        raise AttackFailed("matching gradients needs the batch size; grant 'batch-size'")
    if seen.weights is None:
        raise AttackFailed("matching gradients needs the weights in force, which were not heard")
    parameters = dict(architecture.named_parameters())
    heard = {
        name: tensor.detach().float()
        for name, tensor in gradient_of(seen, known.recipe).items()
        if name in parameters
    }
    _check(heard, seen, parameters)
    names = {id(parameter): name for name, parameter in parameters.items()}
    model = _in_force(architecture, seen, known.recipe or LocalRecipe(), next(iter(heard.values())))
    table = cast(LanguageModel, model).token_embedding.weight.detach()
    output = _output_layer(model, table.shape[1], known.num_classes)
    original = cast(nn.Linear, architecture.get_submodule(output))
    layer = cast(nn.Linear, model.get_submodule(output))
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    table_name = names[id(language.token_embedding.weight)]
    bias_name = names.get(id(original.bias))
    left_out = {table_name}
    if tokens.head != "classes":
        left_out |= {names[id(original.weight)], bias_name or table_name}
        parent, _, child = output.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    positions = language.position_embedding
    position_name = None if positions is None else names[id(positions.weight)]
    norm = sum(float(tensor.square().sum()) for tensor in heard.values()) ** 0.5
    target = {
        name: tensor
        for name, tensor in heard.items()
        if name not in left_out and float(tensor.norm()) > _ROUNDING * norm
    }
    if not target:
        raise AttackFailed("nothing to match: no layer between embeddings and output was heard")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in target)
    position_gradient = heard.get(position_name or "")
    return TextVictim(
        model=model,
        tokens=tokens,
        table=table,
        output_weight=weight,
        output_bias=bias,
        tied=weight.data_ptr() == table.data_ptr(),
        target=target,
        visible={
            name: mask.to(table)
            for name, mask in (seen.visible or {}).items()
            if name in target and not bool(mask.all())
        },
        table_gradient=heard.get(table_name),
        bias_gradient=heard.get(bias_name or ""),
        position_gradient=position_gradient,
        batch_size=known.batch_size,
        length=_length(
            position_gradient, tokens, known.input_shape, _noise(seen, known, position_name or "")
        ),
    )


def _check(
    heard: Mapping[str, Tensor], seen: Observation, parameters: Mapping[str, nn.Parameter]
) -> None:
    for name, tensor in heard.items():
        if tensor.shape != parameters[name].shape:
            raise AttackFailed(
                f"the update heard of '{name}' has shape {tuple(tensor.shape)}, the model's has "
                f"{tuple(parameters[name].shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise AttackFailed("the update heard is not finite")
    if not any(bool(tensor.ne(0).any()) for tensor in heard.values()):
        raise AttackFailed("nothing to match: no coordinate other than zero was heard")
    for name, mask in (seen.visible or {}).items():
        if name in heard and mask.shape != heard[name].shape:
            raise AttackFailed(f"the mask of '{name}' has another shape than what was heard of it")


def _in_force(
    architecture: nn.Module, seen: Observation, recipe: LocalRecipe, like: Tensor
) -> nn.Module:
    """Return a copy of the model with the weights heard, in the client's mode."""
    weights = seen.weights or {}
    require_sound_weights(architecture, weights)
    model = copy.deepcopy(architecture).train(recipe.train_mode).to(like)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in weights:
                raise AttackFailed(f"the weights in force of '{name}' were not heard")
            parameter.copy_(weights[name])
    return model


def _output_layer(model: nn.Module, width: int, num_classes: int | None) -> str:
    """Return the name of the linear layer that gives the logits.

    Raises:
        AttackFailed: There is none, or the model draws random numbers.
    """
    found: list[str] = []

    def note(name: str, module: nn.Linear) -> None:
        if num_classes is None or module.out_features == num_classes:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, *_, name=name: note(name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    device = next(model.parameters()).device
    example = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad(), global_generators(device=device):
            once, again = model(example), model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.allclose(once, again):
        raise AttackFailed(
            "the client's model draws random numbers in training mode: its gradient cannot be "
            "recomputed; set model.options.dropout = 0"
        )
    if not found:
        raise AttackFailed("the model's logits are not those of a linear layer")
    return found[-1]


def _noise(seen: Observation, known: Knowledge, name: str) -> float:
    """Return the standard deviation of the noise known to be on the gradient of a parameter."""
    deviation = 0.0 if known.noise is None else known.noise.deviation.get(name, 0.0)
    stepped = seen.kind in (Kind.DELTA, Kind.WEIGHTS) and known.recipe is not None
    rate = known.recipe.learning_rate if stepped and known.recipe else None
    return deviation / (rate or 1.0)


def _length(
    gradient: Tensor | None, tokens: Tokens, shape: tuple[int, ...] | None, noise: float
) -> int:
    """Return the length of the longest example.

    The last token of an example predicts nothing, and of a causal model nothing attends to it.

    Args:
        gradient: Of the position embeddings, (P, D); None if it was not heard.
        tokens: Of the task.
        shape: Of an input, (T,), if it is known.
        noise: Standard deviation of what was added to every coordinate.
    """
    if gradient is not None and noise:
        loud = gradient.norm(dim=1) > _LOUD * noise * gradient.shape[1] ** 0.5
        gradient = torch.where(loud[:, None], gradient, 0)
    heard = 0 if gradient is None else num_tokens_heard(gradient)
    if gradient is not None and heard:
        return min(heard + (tokens.head == "causal"), len(gradient))
    if shape is None:
        raise AttackFailed("the length is neither told by the gradient nor granted")
    return shape[0]
