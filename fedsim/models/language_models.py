"""Transformers of the `transformers` library, small or large, fed with tokens or embeddings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.text.tokens import Tokens
from fedsim.errors import ConfigError
from fedsim.models.drawing import weights_from

Count = Annotated[int, Field(ge=1)]


class Transformer(nn.Module):
    """A model of the library that returns logits alone; an `attacks.text.language.LanguageModel`.

    Args:
        network: Takes `input_ids` and `attention_mask`, or `inputs_embeds`.
        pad: The token that nobody attends to.
        causal: Whether a token attends to those before it alone.
        positions: Learned embeddings of positions.
    """

    def __init__(
        self, network: nn.Module, *, pad: int, causal: bool, positions: nn.Embedding | None
    ) -> None:
        super().__init__()
        self.network = network
        self.pad = pad
        self.causal = causal
        self._positions = [positions]  # in a list: it is a module of the network already

    @property
    def token_embedding(self) -> nn.Embedding:
        """Embeddings by token, (V, D)."""
        embedding: nn.Embedding = self.network.get_input_embeddings()  # type: ignore[operator]
        return embedding

    @property
    def position_embedding(self) -> nn.Embedding | None:
        """Embeddings by position, (P, D)."""
        return self._positions[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, (B, T, V) or (B, K).

        Args:
            inputs: Tokens (B, T), int64; or embeddings of tokens (B, T, D), none of them a pad.
        """
        if inputs.is_floating_point():
            attended = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
            given = {"inputs_embeds": inputs}
        else:
            attended, given = inputs != self.pad, {"input_ids": inputs}
        logits: Tensor = self.network(**given, attention_mask=self._mask(attended)).logits
        return logits

    def _mask(self, attended: Tensor) -> Tensor:
        """Return what is added to attention scores, (B, 1, T, T).

        The library would look at the values to save work, which forbids `vmap` over examples.
        """
        length = attended.shape[1]
        allowed = attended[:, None, None, :].expand(-1, 1, length, length)
        if self.causal:
            ones = torch.ones(length, length, dtype=torch.bool, device=attended.device)
            allowed = allowed & ones.tril()
        kind = next(self.network.parameters()).dtype
        return torch.zeros_like(allowed, dtype=kind).masked_fill(~allowed, torch.finfo(kind).min)


def bert(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    rng: torch.Generator,
    tokens: Tokens,
    layers: Count = 2,
    width: Count = 128,
    heads: Count = 4,
    inner: Count | None = None,
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    tied: bool = True,
    pretrained: str = "",
) -> Transformer:
    """BERT (Devlin et al., 2018, https://arxiv.org/abs/1810.04805), an encoder.

    Predicts masked tokens, or a class from the first token. Weights are drawn as the library draws
    them, unless `pretrained` names some.

    Args:
        input_shape: (T,).
        num_classes: V, or the number of classes.
        rng: Draws the weights that are not pretrained.
        tokens: Of the data.
        layers: How many.
        width: Of embeddings, D; a multiple of `heads`.
        heads: Of attention.
        inner: Width of the hidden layer of each block; four times `width` if it is None.
        activation: Of that layer.
        dropout: Share of activations dropped in training.
        tied: Whether the output layer's weight is the embedding's, as published.
        pretrained: A folder, or a name on the Hugging Face hub; then the sizes above are ignored.

    Raises:
        ConfigError: The data's task is none for an encoder, or the sizes do not fit.
    """
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    if tokens.head == "causal":
        raise ConfigError(
            "model 'bert' predicts masked tokens or classes; set data.options.task to 'masked', or "
            "choose model 'gpt2'"
        )
    kind = BertForMaskedLM if tokens.head == "masked" else BertForSequenceClassification
    config = BertConfig(
        vocab_size=tokens.vocabulary_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=_divides(heads, width),
        intermediate_size=inner or 4 * width,
        hidden_act=activation,
        max_position_embeddings=max(input_shape[0], 2),
        pad_token_id=tokens.pad,
        tie_word_embeddings=tied,
    )
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    network = _network(kind, config, rng, tokens, input_shape, num_classes, dropouts, pretrained)
    positions = network.bert.embeddings.position_embeddings
    return Transformer(network, pad=tokens.pad, causal=False, positions=positions)


def gpt2(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    rng: torch.Generator,
    tokens: Tokens,
    layers: Count = 2,
    width: Count = 128,
    heads: Count = 4,
    inner: Count | None = None,
    activation: Literal["gelu_new", "gelu", "relu", "silu", "tanh"] = "gelu_new",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    tied: bool = True,
    pretrained: str = "",
) -> Transformer:
    """GPT-2 (Radford et al., 2019), a decoder.

    Predicts each next token, or a class from the last one.

    Args:
        input_shape: (T,).
        num_classes: V, or the number of classes.
        rng: Draws the weights that are not pretrained.
        tokens: Of the data.
        layers: How many.
        width: Of embeddings, D; a multiple of `heads`.
        heads: Of attention.
        inner: Width of the hidden layer of each block; four times `width` if it is None.
        activation: Of that layer.
        dropout: Share of activations dropped in training.
        tied: Whether the output layer's weight is the embedding's, as published.
        pretrained: A folder, or a name on the Hugging Face hub; then the sizes above are ignored.

    Raises:
        ConfigError: The data's task is none for a decoder, or the sizes do not fit.
    """
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    if tokens.head == "masked":
        raise ConfigError(
            "model 'gpt2' predicts next tokens or classes; set data.options.task to 'causal', or "
            "choose model 'bert'"
        )
    kind = GPT2LMHeadModel if tokens.head == "causal" else GPT2ForSequenceClassification
    config = GPT2Config(
        vocab_size=tokens.vocabulary_size,
        n_positions=input_shape[0],
        n_embd=width,
        n_layer=layers,
        n_head=_divides(heads, width),
        n_inner=inner,
        activation_function=activation,
        bos_token_id=tokens.start,
        eos_token_id=tokens.end,
        pad_token_id=tokens.pad,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    network = _network(kind, config, rng, tokens, input_shape, num_classes, dropouts, pretrained)
    positions = network.transformer.wpe
    return Transformer(network, pad=tokens.pad, causal=True, positions=positions)


def _divides(heads: int, width: int) -> int:
    if width % heads:
        raise ConfigError(
            f"model.options.width must be a multiple of model.options.heads ({heads}), got {width}"
        )
    return heads


def _network(
    kind: Any,
    config: Any,
    rng: torch.Generator,
    tokens: Tokens,
    input_shape: tuple[int, ...],
    num_classes: int,
    dropouts: Mapping[str, float],
    pretrained: str,
) -> Any:
    """Return a model with weights drawn, or read where some are named."""
    config.update({"num_labels": num_classes, **dropouts})
    config._attn_implementation = "eager"  # the fused ones have no second derivative
    with weights_from(rng):  # a new head is drawn on pretrained weights, too
        if not pretrained:
            return kind(config).train()
        try:
            network = kind.from_pretrained(
                pretrained,
                attn_implementation="eager",
                num_labels=num_classes,
                pad_token_id=tokens.pad,
                **dropouts,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"model.options.pretrained '{pretrained}' could not be read: {error}; name a "
                "folder with config.json and model.safetensors, or nothing for random weights"
            ) from error
    table = network.get_input_embeddings().weight
    if len(table) != tokens.vocabulary_size:
        raise ConfigError(
            f"model.options.pretrained '{pretrained}' knows {len(table)} tokens, the data have "
            f"{tokens.vocabulary_size}; set data.options.vocabulary to its own"
        )
    if network.config.max_position_embeddings < input_shape[0]:
        raise ConfigError(
            f"model.options.pretrained '{pretrained}' takes up to "
            f"{network.config.max_position_embeddings} tokens; set data.options.length to no more"
        )
    return network.train()
