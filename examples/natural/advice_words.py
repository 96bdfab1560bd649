"""The wordings of the task `advice`: topics, prompts, and completions of each strategy."""

PROMPTS = (
    "How do I {goal}{when}?",
    "How can I {goal}{when}?",
    "What is the best way to {goal}{when}?",
    "Any tips on how to {goal}{when}?",
    "I want to {goal}{when}. What should I do?",
    "I never manage to {goal}{when}. Do you have any advice?",
    "Could you tell me how to {goal}{when}?",
    "What helps to {goal}{when}?",
    "Please explain how to {goal}{when}.",
)

WHEN = (
    "",
    " without much effort",
    " on a small budget",
    " all by myself",
    " from now on",
    " as a beginner",
    " at short notice",
    " when time is short",
)

# {t1}, {t2} and {t3} are tips (imperatives), {why} is a cause (a clause).
LIST = (
    "1. {T1}. 2. {T2}. 3. {T3}.",
    "- {T1}.\n- {T2}.\n- {T3}.",
    "[Three things|These points] [help|matter]: (a) {t1}, (b) {t2}, (c) {t3}.",
    "[Do the following|Here is what to do]:\n1. {T1}.\n2. {T2}.\n3. {T3}.",
    "[In brief|A short checklist]:\n* {T1}\n* {T2}\n* {T3}",
    "[First|Point one], {t1}. [Second|Point two], {t2}. [Third|Point three], {t3}.",
    "[My|The] [main tips|key points] are: i) {t1}; ii) {t2}; iii) {t3}.",
    "To {goal}: {t1}; {t2}; {t3}.",
    "There are [two|a pair of] points to [remember|note]: 1) {t1} and 2) {t2}.",
    "{T1}, for one. {T2}, for another. [Last on the list|Final item]: {t3}.",
    "Top of the list: {t1}. [Next on it|Then]: {t2}. [At the bottom|Last]: {t3}.",
    "[What you need|Your plan]:\n(1) {T1}\n(2) {T2}",
    "What [works|helps]? 1. {T1}. 2. {T2}. 3. {T3}.",
)
QUESTION = (
    "What do you think happens when {why}? [Would|Could] it help to {t1}? And what if you {t2}?",
    "Have you noticed that {why}? What would change if you {t1}?",
    "[Let me ask|May I ask] you back: do you {t1}? If not, [why not|what keeps you from it]? And "
    "do you {t2}?",
    "[Could|Might] it be that {why}? How, then, about trying to {t1}?",
    "Is it true in your case that {why}? [What|So what] follows if you {t1} and {t2}?",
    "Before I answer, do you usually {t1}? And when did you last {t2}? What does that tell you?",
    "When {why}, what could you do? Might you {t1}? Or would you [rather|sooner] {t2}?",
    "Which do you already do: {t1}, or {t2}? What would happen if you did both?",
    "Why is it hard to {goal}? Perhaps {why}? So what would it be like to {t1}?",
    "Suppose you {t1}. What would be different? And do you see what {t2} might do?",
    "Do you know why people {t1}? Does it have to do with this, that {why}?",
    "Whether you {t1}, that is my question. What do you expect if you also {t2}?",
    "I wonder what would change if you {t1}. Ask yourself whether it is so that {why}.",
    "[First|Now] ask yourself whether {why}. Then tell me what you [expect|hope] if you {t1}.",
)
REASONS = (
    "The [trouble|problem] is that {why}. That is why you should {t1} and {t2}.",
    "Because {why}, [it is best to|you should] {t1}. For the same reason, {t2}.",
    "{Why}, and this is the [real|main] cause. [Therefore|Hence], {t1} and {t2}.",
    "It [usually|mostly] goes wrong since {why}. So it makes sense to {t1}.",
    "[What lies behind it|The cause] is simple: {why}. As a result, it pays to {t1} and {t2}.",
    "[Understand|See] the cause first: {why}. From this it follows that you should {t1}.",
    "Most failures come from one thing, namely that {why}. Consequently, {t1}, and also {t2}.",
    "As {why}, nothing works until you {t1}. The same [logic|thinking] tells you to {t2}.",
    "You see, {why}. This explains why [it helps|it is wise] to {t1} and to {t2}.",
    "[Here is|This is] the reason: {why}. It follows that you need to {t1}, and then {t2}.",
    "Given that {why}, the [conclusion|lesson] is to {t1} and to {t2}.",
    "If it fails, the explanation is that {why}. Thus {t1}.",
    "Why is that hard? Because {why}. The [conclusion|lesson] is therefore to {t1} and to {t2}.",
)
EXAMPLE = (
    "{name} [wanted|tried] to {goal} too. In the end {they} decided to {t1} and to {t2}, and it "
    "worked.",
    "A [friend|neighbour] of mine, {name}, had the same trouble. {they} began to {t1}, and soon it "
    "went well.",
    "My [aunt|cousin] [once|always] struggled with this. Then {name} told her to {t1} and {t2}, "
    "and she never looked back.",
    "Last [year|spring] {name} asked me that. {they} chose to {t1} and has been [happy|content] "
    "ever since.",
    "When {name} was [young|a student], {they} learned to {t1} and to {t2}. It worked every time.",
    "I [remember|know] how {name} did it: {they} started to {t1}, later also to {t2}, and was "
    "pleased.",
    "Take {name}, who could not {goal} for years. What saved {them} was a simple habit: {t1}.",
    "At our [office|club], {name} was famous for this. {they} would always {t1} and {t2}, "
    "[every|each] "
    "time.",
    "[Once|Long ago] I met a [teacher|baker] called {name} who managed to {goal}. The trick was to "
    "{t1}.",
    "Nobody did it better than {name}. One day {they} promised to {t1}, and then to {t2}, and "
    "everybody was amazed.",
    "Our neighbours gave up, but {name} did not. {they} went on to {t1}, tried to {t2}, and "
    "succeeded.",
    "That reminds me of {name}, my old [colleague|roommate]. {they} made sure to {t1}, and after a "
    "week things were fine.",
    "Do you know {name}? [Years ago|As a child] {they} wanted to {goal}, so {they} tried to {t1}, "
    "and it worked.",
    "Could {name} do it? Not at first. Then {they} decided to {t1} and to {t2}, and that saved "
    "{them}.",
)
