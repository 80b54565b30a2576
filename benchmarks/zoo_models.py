"""Architectures of `zoo.py`: small models of `transformers` with random weights, each with the inputs of one call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

__all__ = ["ZOO", "Architecture", "build"]

Inputs = dict[str, Tensor]
TOKENS, VOCABULARY, SIDE = 16, 500, 64
# Names that most configurations give to their sizes; a configuration uses those that it knows and ignores the rest.
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQUENCE: dict[str, Any] = TEXT | {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 2,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": SIDE,
    "patch_size": 16,
}


@dataclass(frozen=True)
class Architecture:
    """Recipe of a model.

    Args:
        name: name of the class in `transformers`.
        kind: "text", "tokens" (text, with none of the usual sizes), "sequence" (encoder and decoder), "image", "audio",
            "features", "spectrogram", "series" or "pair" (image and text).
        sizes: sizes of its configuration, in place of those of the kind.
        nested: sizes of inner configurations, by the argument that takes them.
    """

    name: str
    kind: str
    sizes: dict[str, Any] = field(default_factory=dict)
    nested: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _text(*names: str, **sizes: Any) -> tuple[Architecture, ...]:
    return tuple(Architecture(name, "text", sizes) for name in names)


def _image(*names: str, **sizes: Any) -> tuple[Architecture, ...]:
    return tuple(Architecture(name, "image", dict(IMAGE) | sizes) for name in names)


def _stages(name: str, **sizes: Any) -> Architecture:
    """Recipe of a network whose sizes are given by stage."""
    return Architecture(name, "image", {"image_size": SIDE} | sizes)


_AUDIO = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_PAIR = {"text_config": TEXT, "vision_config": IMAGE}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "out_features": _STAGES}
_DINO = IMAGE | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
ZOO: tuple[Architecture, ...] = (
    *_text("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel", "MPNetModel"),
    *_text("LayoutLMModel", "DebertaV2Model", "RoFormerModel", "NystromformerModel", "FNetModel", "ErnieModel"),
    *_text("DistilBertModel", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    *_text("AlbertModel", embedding_size=32),
    *_text("SqueezeBertModel", embedding_size=64),
    *_text("ModernBertModel", global_attn_every_n_layers=1, attn_implementation="eager"),
    *_text("ConvBertModel", embedding_size=64),
    *_text("GPT2LMHeadModel", n_embd=64, n_layer=2, n_head=4, n_positions=128),
    *_text("GPTNeoForCausalLM", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    *_text("GPTNeoXForCausalLM", "OPTForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"),
    *_text("Qwen3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", head_dim=16),
    *_text("PhiForCausalLM", "Phi3ForCausalLM", "StableLmForCausalLM", "OlmoForCausalLM", "Starcoder2ForCausalLM"),
    *_text("BloomForCausalLM", n_layer=2, n_head=4),
    *_text("FalconForCausalLM", alibi=False),
    *_text("MptForCausalLM", d_model=64, n_layers=2, n_heads=4),
    *_text("XLMModel", emb_dim=64, n_layers=2, n_heads=4),
    *_text("IBertModel", quant_mode=False),
    *_text("CanineModel", num_hash_buckets=64),
    *_text("TapasModel", type_vocab_sizes=[3, 8, 8, 2, 8, 8, 2]),
    *_text("LukeModel", entity_vocab_size=20, entity_emb_size=32),
    *_text("CodeGenForCausalLM", n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128),
    *_text("GPTBigCodeForCausalLM", n_embd=64, n_layer=2, n_head=4, n_positions=128),
    *_text("BioGptForCausalLM", "CohereForCausalLM"),
    *_text("MixtralForCausalLM", "OlmoeForCausalLM", **_EXPERTS),
    *_text("MambaForCausalLM", state_size=8, time_step_rank=8),
    *_text("Mamba2ForCausalLM", state_size=8, num_heads=8, head_dim=16, n_groups=1, chunk_size=8),
    *_text("RecurrentGemmaForCausalLM", lru_width=64, head_dim=16, attention_window_size=16, num_hidden_layers=3),
    Architecture("XLNetModel", "tokens", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}),
    Architecture(
        "FunnelModel",
        "tokens",
        {"block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "num_decoder_layers": 1},
    ),
    Architecture("M2M100Model", "sequence"),
    Architecture("T5Model", "sequence", {"d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
    Architecture("BartModel", "sequence"),
    Architecture("PegasusModel", "sequence"),
    Architecture("MarianModel", "sequence"),
    Architecture("MBartModel", "sequence"),
    *_image("ViTModel", "DeiTModel", "BeitModel", "Dinov2Model", "IJepaModel"),
    *_image("YolosModel", image_size=[SIDE, SIDE], num_detection_tokens=4),
    *_image(
        "DPTForDepthEstimation",
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 48],
        initializer_range=0.2,
    ),
    _stages("SwinModel", window_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4]),
    _stages("Swinv2Model", window_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4]),
    _stages("ConvNextModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
    _stages("ConvNextV2Model", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
    _stages("ResNetModel", embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1]),
    _stages("RegNetModel", embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], groups_width=8),
    _stages("BitModel", embedding_size=32, hidden_sizes=[128, 128, 256, 256], depths=[1, 1, 1, 1]),
    _stages("MobileNetV1Model", depth_multiplier=0.25),
    _stages("MobileNetV2Model", depth_multiplier=0.25),
    _stages("MobileViTModel", hidden_sizes=[32, 48, 64], initializer_range=0.2),
    _stages("EfficientNetModel", width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, initializer_range=0.2),
    _stages("SegformerModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 4]),
    _stages("PvtModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 4]),
    _stages("PoolFormerModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_scale_init_value=0.1),
    _stages("FocalNetModel", embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]),
    _stages("LevitModel", hidden_sizes=[32, 48, 64], depths=[1, 1, 1], num_attention_heads=[2, 3, 4]),
    _stages("HieraModel", embed_dim=32, depths=[1, 1], num_heads=[1, 2], image_size=[SIDE, SIDE], num_query_pool=1),
    _stages("CvtModel", embed_dim=[16, 32, 48], depth=[1, 2, 3], num_heads=[1, 2, 4]),
    _stages("SwiftFormerModel", embed_dims=[16, 24, 32, 48], depths=[1, 1, 1, 1]),
    _stages("DINOv3ConvNextModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
    _stages(
        "HGNetV2ForImageClassification",
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 32, 48, 64],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[32, 48, 64, 96],
        stage_num_blocks=[1, 1, 1, 1],
        embedding_size=16,
        hidden_sizes=[32, 48, 64, 96],
        depths=[1, 1, 1, 1],
    ),
    *_image("VitDetModel", pretrain_image_size=SIDE, window_block_indices=[0], residual_block_indices=[1]),
    Architecture(
        "DepthAnythingForDepthEstimation",
        "image",
        {"patch_size": 16, "reassemble_hidden_size": 64, "neck_hidden_sizes": [16, 24, 32, 48]}
        | {"fusion_hidden_size": 32, "head_hidden_size": 16, "initializer_range": 0.2},
        {"backbone_config": {"model_type": "dinov2"} | _DINO},
    ),
    Architecture(
        "DetrForObjectDetection",
        "image",
        SEQUENCE | {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 8, "hidden_size": 64},
        {"backbone_config": {"model_type": "resnet"} | _RESNET},
    ),
    Architecture("Wav2Vec2Model", "audio", _AUDIO),
    Architecture("Data2VecAudioModel", "audio", _AUDIO),
    Architecture("Wav2Vec2ConformerModel", "audio", _AUDIO | {"position_embeddings_type": "rotary"}),
    Architecture("HubertModel", "audio", _AUDIO),
    Architecture("WavLMModel", "audio", _AUDIO),
    Architecture("UniSpeechModel", "audio", _AUDIO),
    Architecture("WhisperModel", "features", SEQUENCE | {"max_source_positions": 50, "max_target_positions": 64}),
    Architecture(
        "Speech2TextModel",
        "features",
        SEQUENCE | {"input_feat_per_channel": 16, "conv_channels": 32, "max_source_positions": 100},
    ),
    Architecture("ASTModel", "spectrogram", IMAGE | {"max_length": 64, "num_mel_bins": 32}),
    Architecture("CLIPModel", "pair", {"projection_dim": 32}, _PAIR),
    Architecture("SiglipModel", "pair", {}, _PAIR),
    Architecture(
        "FlavaModel",
        "pair",
        {"projection_dim": 32, "hidden_size": 64},
        {"text_config": TEXT, "image_config": IMAGE, "multimodal_config": TEXT},
    ),
    Architecture("BridgeTowerModel", "pair", IMAGE, _PAIR),
    Architecture(
        "GroupViTModel",
        "pair",
        {"projection_dim": 32, "projection_intermediate_dim": 32},
        {
            "text_config": TEXT,
            "vision_config": IMAGE
            | {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0]},
        },
    ),
    Architecture(
        "PatchTSTModel",
        "series",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
    ),
    Architecture(
        "CLIPSegForImageSegmentation", "pair", {"projection_dim": 64, "extract_layers": [0, 1], "reduce_dim": 32}, _PAIR
    ),
)


class _First(nn.Module):
    """A model of `transformers` that takes positional tensors and returns its first floating-point tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the model with its inputs in the order of their names."""
        found = self.model(**dict(zip(self._names, inputs, strict=True)))
        tensors = (value for value in found.to_tuple() if isinstance(value, Tensor) and value.is_floating_point())
        return next(tensors)


def build(architecture: Architecture) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The model in evaluation mode, and the inputs of four calls, the first its example."""
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture.name)
    base: dict[str, Any] = {
        "text": TEXT,
        "sequence": SEQUENCE,
        "audio": TEXT,
        "tokens": {"vocab_size": VOCABULARY},
    }.get(architecture.kind, {})
    config = model_class.config_class(**base | dict(architecture.sizes), **architecture.nested)
    config.use_cache = False
    model = model_class(config)
    calls = [_inputs(architecture, config) for _ in range(4)]
    with torch.no_grad():
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            for _ in range(4):  # with initial statistics activations vanish with depth
                model.train()(**{name: torch.cat([value] * 2) + 0 for name, value in calls[0].items()})
    return _First(model.eval(), tuple(calls[0])), [tuple(call.values()) for call in calls]


def _inputs(architecture: Architecture, config: Any) -> Inputs:  # each configuration has its own class
    tokens = torch.randint(3, VOCABULARY, (2, TOKENS))
    channels = getattr(config, "num_channels", 3)
    image = torch.randn(2, channels, SIDE, SIDE)
    kind = architecture.kind
    if kind in ("text", "tokens"):
        return {"input_ids": tokens}
    if kind == "sequence":
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :8]}
    if kind == "image":
        return {"pixel_values": image}
    if kind == "audio":
        return {"input_values": torch.randn(2, 4000)}
    if kind == "features":
        bins = getattr(config, "num_mel_bins", None)
        shape = (2, 40, config.input_feat_per_channel) if bins is None else (2, bins, 100)
        return {"input_features": torch.randn(shape), "decoder_input_ids": tokens[:, :8]}
    if kind == "series":
        return {"past_values": torch.randn(2, config.context_length, config.num_input_channels)}
    if kind == "spectrogram":
        return {"input_values": torch.randn(2, config.max_length, config.num_mel_bins)}
    return {"input_ids": tokens, "pixel_values": image}
