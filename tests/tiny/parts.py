"""Text encoders, tokenizers and VAEs with random weights, as small as they can be. Prompts are read by letters."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from consumer.engine.loading.processors import PictureProcessor

SHIFTED = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 16,
    "max_image_seq_len": 256,
}
_SPECIAL = ("<pad>", "<eos>", "<unk>", "<bos>")
_WORDS = {token: i for i, token in enumerate((*_SPECIAL, *map(chr, range(32, 127)), "\n"))}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
_CHAT = (
    "{% for m in messages %}<{{m.role}}>{% if m.content is string %}{{m.content}}{% else %}"
    "{% for c in m.content %}{{c.text}}{% endfor %}{% endif %}{% endfor %}"
)


def flow(**config: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**config)


def tokenizer(limit: int, *, chat: bool = False) -> Any:
    letters = Tokenizer(models.WordLevel(_WORDS, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {name: f"<{name[:3]}>" for name in ("pad_token", "eos_token", "unk_token", "bos_token")}
    made = PreTrainedTokenizerFast(tokenizer_object=letters, model_max_length=limit, **names)
    made.chat_template = _CHAT if chat else None
    return made


def clip(*, projects: bool = False, **more: Any) -> Any:
    config = {
        "vocab_size": len(_WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "projection_dim": 32,
        **_IDS,
        **more,
    }
    return (t.CLIPTextModelWithProjection if projects else t.CLIPTextModel)(t.CLIPTextConfig(**config))


def t5(width: int = 32) -> Any:
    return t.T5EncoderModel(
        t.T5Config(vocab_size=len(_WORDS), d_model=width, d_kv=8, d_ff=40, num_layers=2, num_heads=2, **_IDS)
    )


def _small_language_model(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": len(_WORDS),
        "max_position_embeddings": 2048,
        **_IDS,
        **more,
    }


def qwen3(kind: str = "Qwen3Model", layers: int = 2, **more: Any) -> Any:
    return getattr(t, kind)(t.Qwen3Config(**_small_language_model(num_hidden_layers=layers, **more)))


def gemma() -> Any:
    return t.Gemma2Model(t.Gemma2Config(**_small_language_model(attn_implementation="eager")))


_SIGHT = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")


def qwen_vl(*, sees: bool = False) -> Any:
    ropes = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    words = {"vocab_size": len(_WORDS) + 1 + len(_SIGHT)} if sees else {}
    text = _small_language_model(rope_scaling=ropes, rope_theta=1e6, **words)
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    tokens = dict.fromkeys(("vision_start_token_id", "vision_end_token_id", "vision_token_id"), 1)
    if sees:
        ids = picture_processor().tokenizer.convert_tokens_to_ids(list(_SIGHT))
        names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
        tokens |= dict(zip(names, ids, strict=True))
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=sight, **tokens)
    return t.Qwen2_5_VLForConditionalGeneration(config)


def vae(channels: int, kind: str = "AutoencoderKL", widths: tuple[int, ...] = (8, 16), **more: Any) -> Any:
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return getattr(d, kind)(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=32,
        **(plain if "shift_factor" in more else {}),
        **more,
    )


def picture_processor() -> Any:
    """Of Qwen2-VL: patches of 14 pixels, at most 16 tokens a picture."""
    reader = tokenizer(1024)
    reader.add_special_tokens({"additional_special_tokens": list(_SIGHT)})
    pictures = t.Qwen2VLImageProcessorPil(
        patch_size=14, temporal_patch_size=2, merge_size=2, min_pixels=28 * 28, max_pixels=28 * 28 * 16
    )
    return PictureProcessor(pictures, reader)
