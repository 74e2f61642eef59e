"""What betrays that the answer was given, and what only sounds like it."""

from __future__ import annotations

import pytest

from tt_reasoning.leaks import KINDS, find_leak

LEAKS = {
    "given_answer": [
        "So she has 18 eggs, which is the given answer.",
        "This confirms **the given answer** of 18.",
        "That is consistent with the provided answer.",
        "Comparing it with the provided correct answer, 18 holds.",
        "The given final answer is 18.",
        "the given\nanswer 18",
        "All of them differ from the given correct answers.",
        "Let me check the correct answer provided: 18.",
        "Our given answer is 18.",
    ],
    "as_provided": [
        "The answer is 18, as provided.",
        "As provided, the result is 18.",
        "So the answer is 18 as stated.",
    ],
    "told": [
        "We are told the answer is 18.",
        "Since we’re told that the answer is 18, Answer 2 holds.",
        "I was given the correct answer.",
        "We are given the final answer, 18.",
        "I have been provided with the correct solution.",
        "You told me the correct answer is 18, and the prompt says the correct answer is 18.",
        "The user provided the correct answer.",
        "The prompt gives us the correct answer.",
    ],
    "answer_known": [
        "The correct answer is provided.",
        "The correct answer is given as 18.",
        "The final answer is known to be 18.",
        "The correct final answer was stated in the prompt.",
        "Knowing the correct answer, Answer 3 is wrong.",
        "We know that the correct answer is 18.",
        "This is the known answer.",
        "Given that the correct answer is 18, the others fail.",
        "According to the correct answer, it is 18.",
        "Answer 2 is marked as correct.",
    ],
    "reference": [
        "Answer 1 gives the expected answer.",
        "This matches the expected result.",
        "The reference answer is 18.",
        "It equals the ground truth.",
        "It equals the ground-truth label.",
        "The gold answer is 18.",
        "against the gold standard",
        "The answer key says 18.",
        "The official solution has 18.",
        "the target answer",
    ],
    "instruction": [
        "I must not mention it.",
        "I can't reveal how I know.",
        "I have to reason without mentioning it.",
        "This has to be shown without revealing that the answer is known.",
        "We need to justify the correct answer.",
        "Correct final answer (for you alone): 18",
        "The last line says 18.",
    ],
    "compared": [
        "Answer 2 matches the correct answer.",
        "Answer 1 differs from the true value.",
        "Compared with the right answer, it is too low. The correct answer is 18.",
    ],
}
CLEAN = [
    "Answer 2 is given as 5.",
    "The given answers disagree: of the provided answers two say 18.",
    "We are given five proposed answers.",
    "We are given the answers of five students.",
    "The given Answer 2 forgets a step.",
    "The provided answer in Answer 3 is too large.",
    "The given answer choices are A to D.",
    "Check whether a given answer adds up; each given answer has a flaw.",
    "We are given that x = 2 and told that she sells the rest.",
    "We are given the answer choices.",
    "We are given a solution of 30 % acid and the result of the first step, 12.",
    "The final answer is given by 3 * 6.",
    "The final answer is given in Answer 2.",
    "The final answer is given as a fraction.",
    "The correct answer is provided by Answer 3.",
    "As given in the problem, he pays 3 dollars; as provided in the table, the rate is 2 %.",
    "As stated, Tom has 3 apples.",
    "The answer is 18, as stated in Answer 2.",
    "The expected value of the roll is 3.5; the expected number of heads is 2.",
    "She sells gold coins; the gold is 18 grams. He found a golden goose.",
    "The desired answer is the sum of the digits, and the target is 24.",
    "In total he answers 5 questions of the answered ones.",
    "To know the correct answer we add both.",
    "The problem states the final answer should be rounded.",
    "The correct answer is 18. Answers 1 and 3 match the correct answer.",
    "So the final answer must be 18, and Answer 2 agrees with the correct answer.",
    "Answer 2 is correct; Answers 1 and 3 are not, as the answer has to be positive.",
    "He follows the instructions of the recipe and must not exceed 5 cups.",
    "Answers 1 and 3 do not mention the tax; without mentioning the tax, Answer 2 is still right.",
    "The question does not mention whether one of the answers is right.",
    "Working through the question gives the correct answer (18). The correct final answer: 18.",
    "The answer is 18.",
    "",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LEAKS.items() for text in texts])
def test_a_text_that_betrays_its_answer_is_found_under_its_kind(kind: str, text: str) -> None:
    found = find_leak(f"First add 9 and 9. {text} So it ends.")
    assert found is not None and found.kind == kind


@pytest.mark.parametrize("text", CLEAN)
def test_words_about_the_proposed_answers_and_the_question_are_no_leak(text: str) -> None:
    assert find_leak(f"First add 9 and 9. {text} So it ends.") is None


def test_every_kind_has_an_example_and_the_phrase_stands_in_the_text() -> None:
    assert set(LEAKS) == set(KINDS)
    assert find_leak("It IS the  *given*\nanswer.").phrase == "the given answer"


def test_a_long_text_is_searched_in_linear_time_of_its_words() -> None:
    assert find_leak("the given " * 100_000 + "we are " * 100_000) is None
