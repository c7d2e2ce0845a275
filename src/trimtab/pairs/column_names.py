"""Names of columns by what they hold, in the data sets that people have."""

from __future__ import annotations

PROMPTS = (
    *("prompt", "question", "instruction", "query", "messages", "conversations", "conversation"),
    *("context", "history", "post", "input"),
)
"""Columns that may hold the prompt, the first that is there."""
PAIRS = (
    ("preferred_output", "non_preferred_output"),
    ("answer_matching_behavior", "answer_not_matching_behavior"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
    ("better", "worse"),
    ("chosen", "reject"),
)
"""The better and the worse answer under other names."""
STEMS = (
    *("human_ref", "response", "answer", "completion", "output", "conversation", "option", "reply"),
    *("candidate", "summary", "generation", "text"),
)
ENDS = (("_a", "_b"), ("_1", "_2"), ("1", "2"), ("_0", "_1"))
THIRD = {"_a": ("_c",), "_1": ("_0", "_3"), "1": ("0", "3"), "_0": ("_2",), "a": ("c",)}
VERDICTS = (
    *("overall_preference", "preference_strength", "preference", "better_response_id", "winner"),
    *("preferred", "preferred_response", "better", "better_response", "labels", "label", "choice"),
    *("chosen", "answer", "human_preference"),
)
"""Columns that may say which of two answers is the better one."""
SIGNED = ("overall_preference", "preference_strength")
"""HelpSteer's: from -3 to 3, below 0 where the first is better."""
SCORES = (
    *("score", "reward", "rating", "fine-grained_score", "overall_score", "helpfulness"),
    *("quality", "rank"),
)
"""Scores of one answer; of a rank the lowest is the best."""
ANSWERS = ("completion", "response", "answer", "output", "text", "content", "generation")
LISTS = ("completions", "responses", "answers", "candidates", "samples", "outputs")
RIGHT = ("answerkey", "answer", "label", "correct", "correct_answer", "answer_idx", "gold")
OWN = {
    *("prompt", "chosen", "rejected", "positive", "negative", "suffix", "item", "concept"),
    *("system", "tools", "chat_template_kwargs"),
}
KNOWN = {
    *(*OWN, "choices", "options", "a", "b", "c", "d", "e"),
    *("kto_tag", "scores", "ratings", "rewards", "ranks", "winner", "score_a", "score_b"),
    *PROMPTS,
    *(name for pair in PAIRS for name in pair),
    *(stem + end for stem in (*STEMS, "score") for ends in ENDS for end in ends),
    *(*VERDICTS, *SCORES, *ANSWERS, *LISTS, *RIGHT),
}
"""Names that a header may write in another case, or with blanks."""
