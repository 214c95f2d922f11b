"""How each number of the report is made, in words; in full: `docs/protocol.md`."""

from igpt.report.content import Protocol


def protocol(probed: str = "", completed: str = "") -> tuple[Protocol, ...]:
    """The paragraphs of a pretraining's report.

    probed: the data of the probe, where it is not the pretraining's. completed: the images of which
    half was completed, such as "the test split"; empty where there are none.
    """
    probe = (
        "Multinomial logistic regression on the mean over all positions of each block's ln_1 "
        "output (the last layer: ln_f), objective mean log loss + l2/2 |W|², intercept free. Layer "
        "and L2 are chosen by accuracy on the validation split; with all labels the fit is made "
        "again on train and validation together; the test split is looked at once. Label budgets "
        "are class-balanced subsets of train by FixMatch's algorithm, one for each seed."
    )
    if probed:
        probe += f" All splits are those of {probed}, another data set than the pretraining's."
    drawn = "Drawn token by token at the temperature of their run, without truncation."
    if completed:
        drawn += f" A completion is given the top half of an image of {completed}."
    return (
        Protocol(
            "Validation loss",
            "Mean cross-entropy in nats per palette token over the first images of the validation "
            "split, which is never trained on. It is to be held against the palette's own entropy: "
            "what a model would lose that knows only how common each colour is in training "
            "(add-one smoothing). Nats per palette token are not bits per dimension of RGB.",
        ),
        Protocol("Linear probe", probe),
        Protocol(
            "Baselines",
            "Untrained: the same network with the weights its training began with. Raw pixels: the "
            "same probe on the colours themselves, without a network.",
        ),
        Protocol("Samples and completions", drawn),
    )
