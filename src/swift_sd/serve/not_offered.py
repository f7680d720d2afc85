"""What clients ask of servers like this one, and cannot have here."""

from __future__ import annotations

from typing import Annotated, Any

from swift_sd.serve.fields import Lenient, Only

Nothing = Annotated[Any, Only()]
Zero = Annotated[Any, Only(0)]
One = Annotated[Any, Only(1)]
Off = Annotated[Any, Only(False)]
On = Annotated[Any, Only(True)]
Empty = Annotated[Any, Only([])]
EmptyObject = Annotated[Any, Only({})]
EmptyText = Annotated[Any, Only("")]


class NotOffered(Lenient):
    """Fields that would change the answer; accepted where they ask for nothing.

    An unknown field is ignored, which for these would give a wrong answer without a word.
    """

    # OpenAI.
    n: One = None
    best_of: One = None
    echo: Off = None
    suffix: EmptyText = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Annotated[Any, Only({}, [])] = None

    # vLLM, SGLang, Text Generation Inference.
    use_beam_search: Off = None
    length_penalty: One = None
    min_tokens: Zero = None
    ignore_eos: Off = None
    stop_token_ids: Empty = None
    bad_words: Empty = None
    allowed_token_ids: Empty = None
    include_stop_str_in_output: Off = None
    skip_special_tokens: On = None
    prompt_logprobs: Zero = None
    truncate_prompt_tokens: Nothing = None
    chat_template: Nothing = None
    documents: Empty = None
    structured_outputs: EmptyObject = None
    guided_json: EmptyObject = None
    guided_regex: EmptyText = None
    guided_choice: Empty = None
    guided_grammar: EmptyText = None
    regex: EmptyText = None
    ebnf: EmptyText = None

    # llama.cpp, Ollama, KoboldCpp, text-generation-webui.
    grammar: EmptyText = None
    json_schema: EmptyObject = None
    format: EmptyText = None
    n_probs: Zero = None
    repeat_penalty: One = None
    typical_p: One = None
    tfs_z: One = None
    tfs: One = None
    top_a: Zero = None
    epsilon_cutoff: Zero = None
    eta_cutoff: Zero = None
    mirostat: Zero = None
    mirostat_mode: Zero = None
    dynatemp_range: Zero = None
    smoothing_factor: Zero = None
    dry_multiplier: Zero = None
    xtc_probability: Zero = None
