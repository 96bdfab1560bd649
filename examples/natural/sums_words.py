"""The wordings of the task `sums`: prompts, and completions of each strategy."""

# ruff: noqa: SIM905 - word lists are split from text, many words a line

ITEMS = (
    "apples marbles stickers books coins stamps shells pencils cards buttons eggs cookies "
    "tickets photos beads stones peaches lemons candles badges"
).split()

PROMPTS = {
    "+": (
        "{name} has {a} {item} and buys {b} more. How many {item} does {they} have now?",
        "There are {a} {item} in a box. {name} adds {b} more. How many {item} are in the box?",
        "{name} counted {a} {item} on Monday and {b} on Tuesday. How many is that in total?",
        "After school {name} finds {b} {item}, on top of the {a} {they} had. How many in all?",
        "{name} owns {a} {item}. A friend gives {them} another {b}. How many {item} now?",
        "How many {item} does {name} have altogether with {a} at home and {b} at school?",
        "{name} puts {a} {item} in one bag and {b} in another. How many are in both?",
        "{name} collected {a} {item} last week and {b} this week. What is the total?",
    ),
    "-": (
        "{name} has {a} {item} and gives away {b}. How many {item} are left?",
        "There were {a} {item} on the table. {name} took {b} of them. How many remain?",
        "{name} had {a} {item} but lost {b} on the way home. How many does {they} still have?",
        "A shop had {a} {item} and sold {b} to {name}. How many {item} are left in the shop?",
        "Out of {a} {item}, {name} has used {b}. How many {item} are still there?",
        "{name} packed {a} {item} and handed {b} to a friend. How many {item} remain?",
        "If {name} removes {b} from a pile, starting with {a} {item}, how many are left?",
    ),
}

TERSE = (
    "{name} [ends up with|comes to] {c} {item}[, and that is the whole answer|].",
    "[That makes|That comes to|It comes to] {c} {item} [in the end|when all is done].",
    "The answer [here|to this one] is [simply|just] {c} {item}[, nothing more|].",
    "{c} {item}[, that is all there is to say|, no more and no less|, and that is it].",
    "[There are|You get|We get] {c} {item} [after that|when it is over].",
    "It is {c} [{item}|of them], [plain and simple|and I am certain of that].",
    "[In the end|In short|All told], {c} {item} is [the right number|what you want].",
    "[Exactly|Just] {c} {item}, [I am sure of it|no doubt about that|for sure].",
    "The [number|amount] of {item} [asked for here|in question] is {c}.",
    "[My|The] [short|quick] answer to that [question|problem]: {c} {item}.",
    "[Right now|By then] it would be {c} {item} [for {name}|as far as I can see].",
    "[Quick reply|Result], without further [ado|words]: {c}.",
)
STEPS = {
    "+": (
        "Step 1: {a} + {bt} = {at}. Step 2: {at} + {bo} = {c}. [So|Hence] the answer is {c}.",
        "1. [Add|Put together] the tens: {ta} + {bt} = {tens}. 2. [Add|Put together] the ones: "
        "{ao} + {bo} = {ones}. 3. [Both together|Combined]: {c}.",
        "[First|To begin], add the tens, {ta} + {bt} = {tens}. [Next|Then] the ones, {ao} + {bo} "
        "= {ones}. [Finally|Last], {tens} + {ones} = {c}.",
        "Split {b} into {bt} and {bo}. [Adding|Joining] {bt} to {a} gives {at}; [then|after that] "
        "{bo} more gives {c}.",
        "We [do|handle] the ones first: {ao} + {bo} = {ones}. Next come the tens: {ta} + {bt} = "
        "{tens}. Put the two parts together and the [result|total] is {c}.",
        "Break both numbers apart: {a} is {ta} and {ao}, {b} is {bt} and {bo}. Tens make {tens}, "
        "ones make {ones}, [so together|together] {c}.",
        "Take the {bt} from {b} and add it to {a}, which is {at}. [What is left is the|There "
        "remain the] {bo} ones: {at} + {bo} = {c}.",
        "[Let us|I will] go in two steps. Tens [first|at the start]: {a} + {bt} = {at}. Ones "
        "second: {at} + {bo} = {c}.",
        "Adding {b} is [easy|simple] in two parts. [With|After] the tens we have {at}, and with "
        "the {bo} ones on top we have {c}.",
        "Ones: {ao} + {bo} = {ones}. Tens: {ta} + {bt} = {tens}. [Sum of the two|Added up]: "
        "{tens} + {ones} = {c}.",
    ),
    "-": (
        "Step 1: {a} - {bt} = {at}. Step 2: {at} - {bo} = {c}. [So|Hence] the answer is {c}.",
        "1. [Take away|Remove] the tens: {a} - {bt} = {at}. 2. [Take away|Remove] the ones: {at} "
        "- {bo} = {c}. 3. [Done|Result]: {c}.",
        "[First|To begin], subtract the tens, {a} - {bt} = {at}. [Next|Then] the ones, {at} - "
        "{bo}. [Finally|Last], we get {c}.",
        "Split {b} into {bt} and {bo}. [Taking|Removing] {bt} from {a} gives {at}; [then|after "
        "that] "
        "{bo} less gives {c}.",
        "We [do|handle] the ones first: {a} - {bo} = {o}. Next come the tens: {o} - {bt} = {c}. "
        "The [result|difference] is {c}.",
        "Break the second number apart: {b} is {bt} and {bo}. Without the tens {a} becomes {at}, "
        "without the ones [it becomes|that becomes] {c}.",
        "Take the {bt} in {b} off {a}, which is {at}. [What is left to do is the|There remain "
        "the] {bo} ones: {at} - {bo} = {c}.",
        "[Let us|I will] go in two steps. Tens [first|at the start]: {a} - {bt} = {at}. Ones "
        "second: {at} - {bo} = {c}.",
        "Subtracting {b} is [easy|simple] in two parts. [Without|After] the tens we have {at}, "
        "and without the {bo} ones as well we have {c}.",
        "Tens [go|come] off first: {a} - {bt} = {at}. Ones [go|come] off next: {at} - {bo} = {c}.",
    ),
}
EQUATION = (
    "Let {v} be the number of {item}. Then {v} = {a} {op} {b}, [so|and hence] {v} = {c}.",
    "[Call|Name] the unknown [number|amount] {v}. [We know|It is known] that {v} = {a} {op} {b}, "
    "which gives {v} = {c}.",
    "If {v} [stands for|is] the {item} we look for, then {v} {inv} {b} = {a}. Solving for {v} "
    "gives {c}.",
    "The [equation|formula] is {v} = {a} {op} {b}. [Evaluate|Work out] the right side: {v} = {c}.",
    "Write {v} for [the result|what is asked]. From {v} {inv} {b} = {a} [follows|we get] {v} = "
    "{a} {op} {b} = {c}.",
    "We [set up|write down] an equation [with|in] {v}: {a} {op} {b} = {v}. [Solved,|The "
    "solution:] {v} = {c}.",
    "With {v} as the unknown, the [problem|text] [says|reads] {a} {op} {b} = {v}. [Therefore|Thus] "
    "{v} equals {c}.",
    "[Using|Take] the formula result = start {op} change. We [insert|put in] the numbers: result = "
    "{a} {op} {b} = {c}.",
    "[Suppose|Say] there are {v} {item} [at the end|finally]. That means {v} {inv} {b} = {a}, and "
    "so {v} must be {c}.",
    "In symbols: {v} = {a} {op} {b}. [The value of|So the unknown] {v} is [therefore|] {c}.",
)
STORY = {
    "+": (
        "[Picture|Imagine] {name} with {a} {item}. A few more arrive, {p}, and now there are {m}. "
        "Then come the other {q}, and the pile has grown to {c}.",
        "At the start {name} [looks at|sees] {a} {item}. {p} more [turn up|come along], so {they} "
        "counts on to {m}; with {q} more {they} reaches {c}.",
        "{name} already has {a}, so {they} [keeps counting|counts on] from there: {p} further is "
        "{m}, and {q} further is {c} {item}.",
        "So {name} [begins|sets out] with {a} {item} and new ones keep coming. Soon it is {m}, "
        "and [after a while|by the end] {they} counts {c}.",
        "Think of {name} laying {a} {item} [in a row|on the floor]. {they} lays down {p} more and "
        "counts {m}, then {q} more and counts {c}.",
        "Once {name} had {a} {item}. The new ones went in [by and by|little by little]: after {p} "
        "there were {m}, after {q} others there were {c}.",
        "[In our story|Here] {name} holds {a} {item} and is [happy|glad] to get {p}, which makes "
        "{m}. {q} others follow, and {they} ends at {c}.",
        "We [follow|watch] {name}, who starts out with {a} {item}. Counting up as the others "
        "arrive, we pass {m} and stop at {c}.",
        "[Every|Each] one of the {a} {item} is [safe|there], says {name}. Along come {p}, so the "
        "count goes up to {m}, and along come {q}, so it goes up to {c}.",
        "{a} {item} are [waiting|lying] there when {name} gets more. {they} [adds|moves] them to "
        "the pile, counting {m1}, {m2}, and so on, all the way up to {c}.",
    ),
    "-": (
        "[Picture|Imagine] {name} and {a} {item}. A few of them go, {p}, and now there are {m}. "
        "Then go the other {q}, and the pile has shrunk to {c}.",
        "At the start {name} [looks at|sees] {a} {item}. {p} of them [go away|disappear], so "
        "{they} counts down to {m}; with {q} more gone {they} reaches {c}.",
        "{name} begins at {a}, and {they} [keeps counting|counts back] from there: {p} fewer is "
        "{m}, and {q} fewer is {c} {item}.",
        "So {name} [begins|sets out] with {a} {item} and they keep disappearing. Soon it is {m}, "
        "and "
        "[after a while|by the end] {they} counts {c}.",
        "Think of {name} laying {a} {item} [in a row|on the floor]. {they} picks up {p} and "
        "counts {m}, then picks up {q} and counts {c}.",
        "Once there were {a} {item} near {name}. They went [by and by|little by little]: after "
        "{p} there were {m}, after {q} others there were {c}.",
        "[In our story|Here] {name} sees {a} {item} and is [sad|sorry] to miss {p}, which leaves "
        "{m}. {q} others follow, and {they} ends at {c}.",
        "We [follow|watch] {name}, who starts out with {a} {item}. Counting back as the others "
        "leave, we pass {m} and stop at {c}.",
        "[Every|Each] one of the {a} {item} was there, says {name}. Off go {p}, so the count "
        "drops to {m}, and off go {q}, so it drops to {c}.",
        "{a} {item} are [waiting|lying] there before any is gone. {name} watches the pile shrink, "
        "counting {m1}, {m2}, and so on, all the way down to {c}.",
    ),
}
