"""What the page says around its numbers: how they were measured, and nothing about what they mean."""

ACCURACY = (
    "The share of {count} test problems answered with a program that passes all hidden tests, at the "
    "largest budget (completions per problem). For <code>sample</code> it is the mean over a problem's "
    "samples."
)
STDERR = (
    "± is the standard error over problems, the standard deviation of the problems' results divided by "
    "the square root of their number: how far the number would typically move with other problems of the "
    "same kind, not with another training seed."
)
TRAINING = (
    "Points are single steps, lines a moving mean over {width}. The reward of a step is the mean over the "
    "completions it trained on; arms that start from chosen prompts or from partial programs are rewarded "
    "on other states, so the heights of two arms do not compare their policies; accuracies do. In a group "
    "without spread all completions have the same reward, and GRPO learns nothing from it."
)
SPREAD = "Standard deviation of the rewards within {what}. Means (dashed lines): {means}."
BUDGET = (
    "Budget is the number of completions a decoding may draw for a problem; bars are standard errors. All "
    "panels have the same axes; points are moved sideways a little so that bars do not cover each other."
)
TREE = (
    "N counts visits, V is the mean over them of {meaning}. A node is one line of the program. Those "
    "marked hidden fell outside the best num_decisions of their parent and are never selected, terminal "
    "ones end a program. Below a node stand the completions sampled there, each with its value."
)
COST = (
    "Sums over the problems. Completions that several decodings share are counted for each as if drawn "
    "for it alone. Value-model tokens are those read in passes of its own; verifier seconds are those "
    "that picking the answer took."
)
SPREAD_DEMO = "the groups of completions that GRPO trained on, one group for each starting state of a step"
SPREAD_RUN = "the completions sampled for each training problem, before prompts were chosen"
ASSEMBLED = (
    "Completions were sampled for every problem and verified. Kept are the prompts that were trained on, "
    "dead those whose completions all had the same reward."
)
VALUE = (
    "On problems held out from its training. AUC and Spearman say how well the values of whole programs "
    "order the rewards within a problem (0.5 and 0 are chance); MSE is over all line ends, constant MSE "
    "that of the mean training target."
)
DECODINGS = {
    "sample": "one completion drawn at the sampling temperature",
    "greedy": "the most likely token at every place",
    "vote": "of all completions drawn, the program that came most often",
    "likelihood": "of all completions drawn, the one of highest log-probability",
    "orm": "of all completions drawn, the one whose end the value model scores highest",
    "prm": "of all completions drawn, the best by the value model's scores of its lines",
    "orm-mcts": "tree search that scores whole programs only",
    "vm-mcts": "tree search led by the value model's scores of lines",
    "oracle": "right if any completion drawn is right: it knows the tests and bounds what picking can reach",
}
VALUES = {
    "collect": "the share of hidden tests that a program passes",
    "value": "the value model's score",
    "outcome": "the reward model's score of whole programs",
}
