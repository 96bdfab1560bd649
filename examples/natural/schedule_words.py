"""The wordings of the task `schedule`: prompts, and completions of each strategy."""

PROMPTS = {
    "+": (
        "The train leaves at {start} and takes {dur}. When does it arrive?",
        "{name} gets on a bus at {start}. The ride lasts {dur}. At what time does {they} arrive?",
        "A film begins at {start} and runs for {dur}. When is it over?",
        "{name} puts a stew on the stove at {start}. It needs {dur}. When is it ready?",
        "The meeting starts at {start} and goes on for {dur}. When does it end?",
        "A flight departs at {start}. Flying time is {dur}. When does it land?",
        "If {name} starts a hike at {start} and walks for {dur}, when does {they} finish?",
        "The match kicks off at {start} and lasts {dur}. At what time is it over?",
        "{name} sets a timer for {dur} at {start}. When does it ring?",
    ),
    "-": (
        "The train must arrive at {start} and takes {dur}. When must it leave?",
        "{name} has to be at work at {start}. The way takes {dur}. When should {they} leave?",
        "A film that runs for {dur} was over at {start}. When did it begin?",
        "Dinner must be ready at {start} and cooking takes {dur}. When should {name} begin?",
        "The meeting lasted {dur} and ended at {start}. When did it begin?",
        "A flight of {dur} landed at {start}. When did it leave?",
        "{name} finished a hike of {dur} at {start}. When did {they} begin it?",
    ),
}
MINUTES = (
    "{start} is {m0} minutes after midnight. {dm} minutes {later} it is minute {m1}, [that is|or] "
    "{end}.",
    "[In minutes|Counted in minutes], the day stands at {m0}. {add} {dm} and you get {m1}, which "
    "[means|reads] {end} on the clock.",
    "{dur} [equals|is] {dm} minutes, and {start} [equals|is] {m0}. {m0} {op} {dm} = {m1}, "
    "[hence|so] "
    "{end}.",
    "Convert [everything|all of it] to minutes: {m0} {op} {dm} = {m1}. [Back on|Read as] the clock "
    "that is {end}.",
    "Since midnight {m0} minutes have passed at {start}. {add} {dm} to reach {m1} minutes, and "
    "{m1} minutes make {end}.",
    "[Write|Express] the time as {h0} x 60 + {mi0} = {m0} minutes. Then {m0} {op} {dm} = {m1}, and "
    "we [read|get] {end}.",
    "We [work|count] from midnight. [That gives|This makes] {m0} minutes for the time and {dm} for "
    "the length, which makes {m1}, or {end}.",
    "As {h0} hours and {mi0} minutes are {m0} minutes, the result is {m0} {op} {dm} = {m1}. "
    "[Divided by 60|Split into hours], {end}.",
    "Minute {m0} of the day is [where we are|our point]. {op_word} {dm} minutes [comes to|gives] "
    "minute {m1}, in other words {end}.",
    "[Turn|Change] {dur} into {dm} minutes and the clock into {m0}. The [outcome|result] is {m1}, "
    "and {m1} / 60 brings us to {end}.",
    "It helps to [think|stay] in minutes only: {m0} for {start}, {dm} for the rest. That makes "
    "{m1}, "
    "so the clock shows {end}.",
)
HOURS_FIRST = (
    "{start} {op_word} {hh} is {mid}. {op_word} [the|another] {mm} [makes|gives] {end}.",
    "[First|To start], move the hour hand: {hh} {later} it is {mid}. Then the {mm} [bring|take] us "
    "to {end}.",
    "{add} the {hh} and you have {mid}. {add} the {mm} [too|as well] and you have {end}.",
    "Whole hours [come first|before minutes]: {start} becomes {mid}. With the {mm} it becomes "
    "{end}.",
    "[Leaving|Leave] the {mm} aside, we [reach|get to] {mid}. [With them|Now with them], it is "
    "{end}.",
    "Go {hh} {way} to {mid}, [then|and after that] {mm} {way} to {end}.",
    "{hh} {later} the clock says {mid}, and {mm} {later} still it says {end}.",
    "[Only|Just] {hh} would [mean|lead to] {mid}; the {mm} on top of that [mean|lead to] {end}.",
    "I [deal|begin] with the {hh}, which [gives|makes] {mid}. Next come the {mm}, which gives "
    "{end}.",
    "The length has two parts. {hh}: from {start} to {mid}. {mm}: from {mid} to {end}.",
    "After the {hh} we are at {mid}. [What is missing|Still missing] are {mm}, so we finish at "
    "{end}.",
    "It is {end}, because {hh} {later} is {mid} and {mm} more {way} is {end}.",
)
VIA_FULL_HOUR = (
    "From {start} it is {r} {unit} to {full}. The [remaining|other] {rest} [lead|take us] to "
    "{end}.",
    "{r} {unit} get us to the full hour, {full}. {rest} [are left|remain], so it is {end}.",
    "[First|To begin with] go {way} to {full}, which uses {r} {unit}. Then {rest} more "
    "[gives|makes] "
    "{end}.",
    "At {full} we have [used|spent] {r} {unit} already. [Left over|Still to go]: {rest}. So {end}.",
    "Stop [briefly|for a moment] at {full}: that is {r} {unit} from {start}. {add} the missing "
    "{rest} "
    "and get {end}.",
    "The nearest round time {way} is {full}, {r} {unit} away. Take {rest} from there [and|to] "
    "land on "
    "{end}.",
    "Use {r} {unit} of the {dur} to fill up to {full}. [With|Using] the rest, {rest}, we come to "
    "{end}.",
    "Until {full} there are {r} {unit}, and {rest} [are|stay] over. [Counting|Going] from {full}, "
    "the "
    "answer is {end}.",
    "{full} is {r} {unit} from {start}, a [handy|good] place to rest. What remains is {rest}: "
    "{end}.",
    "Let us [round|jump] to {full}; this takes {r} {unit}. We still need {rest}, so [we end|the "
    "end is] "
    "at {end}.",
    "I [split|cut] {dur} into {r} {unit} and {rest}. The one part goes to {full}, the other to "
    "{end}.",
    "It must be {end}: {r} {unit} to {full} on the hour, and [from there|then] {rest} to {end}.",
)
