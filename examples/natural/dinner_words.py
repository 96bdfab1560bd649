"""The wordings of the task `dinner`: prompts, sentences of all cuisines, words of each cuisine."""

# ruff: noqa: SIM905 - word lists are split from text, many words a line

MAINS = (
    "chicken|fish|tofu|prawns|pork|beef|turkey|chickpeas|eggs|lamb|salmon|beans|duck|cod|mussels"
).split("|")
BASES = (
    "rice|noodles|potatoes|spinach|carrots|mushrooms|peppers|cabbage|lentils|peas|aubergine|leeks|"
    "pumpkin|broccoli|cauliflower|green beans|onions|sweet potatoes"
).split("|")

PROMPTS = (
    "Suggest a dinner with {main} and {base}.",
    "What can I cook tonight with {main} and {base}?",
    "I have {main} and {base} at home. What should I make for dinner?",
    "Any ideas for a meal with {main} and {base}?",
    "We bought {main} and {base}. Please propose a dish for {people}.",
    "Could you think of a dinner for {people} that uses {main} and {base}?",
    "{name} is coming over and likes {main}. I also have {base}. What do I cook?",
    "Give me a short dinner idea using {base} and {main}.",
    "How can I turn {main} and {base} into a good dinner?",
)

# Every cuisine uses these same sentences, so that only the content distinguishes them.
SENTENCES = (
    "How about {dish} with the {main}? Add {f1} and {f2} and [serve|bring] it with {side}.",
    "You could [make|cook] {dish}. Season the {main} with {f1}, stir in {f2}, and put {side} on "
    "the table.",
    "[Try|Go for] {dish}: fry the {main} with {f1}, add the {base}, and finish with {f2}.",
    "{dish} would be [lovely|great] here. Let the {main} and {base} simmer with {f1} and {f2}.",
    "With {main} and {base} I would [go for|pick] {dish}, flavoured with {f1}, and [offer|have] "
    "{side} beside it.",
    "Start by warming {f1} in a pan, then add {main} and {f2}. [Soon|Before long] you have {dish} "
    "to go with {side}.",
    "My [suggestion|choice] is {dish}. The {base} [soaks|takes] up the taste of {f1} and {f2}; "
    "round it off with {side}.",
    "For a [quick|simple] evening, cook {dish} and serve {side} with it. A little {f1} on the "
    "{main} does wonders.",
    "Give the {main} some {f1}, roast everything with {base}, and call it a [quick|free] take on "
    "{dish}. "
    "Have some {side} on the side.",
    "Why not {dish}? [All|What] you need besides {main} and {base} is {f1}, {f2} and a bit of "
    "patience.",
    "Put {f1}, {f2} and the {main} in one pot, add {base} later, and you [get|have] a kind of "
    "{dish}.",
    "{f1} and {f2} go [well|nicely] with {main}, so {dish} comes to mind, perhaps with {side}.",
    "People [love|enjoy] {dish} at my table. Keep the {base} crisp, use plenty of {f1}, and have "
    "{side} ready.",
    "I think of {side} first, then of {dish} with {main}, {base} and a [touch|hint] of {f1}.",
    "[Cut|Chop] the {base} small, brown the {main}, add {f1} with {f2}, and there is your {dish}.",
)

# Each cuisine: its dishes, its flavourings, its sides. A few flavourings are shared on purpose.
CUISINES = {
    "italian": (
        "risotto|lasagne|cacciatore|saltimbocca|piccata|gnocchi|minestrone|parmigiana|ravioli|"
        "ragù|frittata|cannelloni|puttanesca".split("|"),
        "basil|oregano|parmesan|balsamic vinegar|rosemary|pesto|capers|pancetta|mascarpone|"
        "sun-dried tomatoes|white wine|garlic|olive oil|fennel seeds".split("|"),
        "focaccia|polenta|bruschetta|rocket salad|ciabatta|grilled courgettes|panzanella".split(
            "|"
        ),
    ),
    "indian": (
        "biryani|tikka masala|korma|vindaloo|jalfrezi|saag|dal|madras curry|rogan josh|bhuna|"
        "pulao|kofta curry|dopiaza".split("|"),
        "garam masala|turmeric|cumin|cardamom|curry leaves|mustard seeds|ghee|fenugreek|tamarind|"
        "coconut milk|ginger|coriander|garlic|yoghurt".split("|"),
        "naan|raita|chapati|mango chutney|poppadoms|lime pickle|parathas".split("|"),
    ),
    "mexican": (
        "tacos|enchiladas|fajitas|burritos|quesadillas|pozole|chilaquiles|tostadas|tamales|"
        "mole poblano|tinga|carnitas|huaraches".split("|"),
        "chipotle|cumin|lime juice|jalapeños|coriander|ancho chillies|cotija cheese|smoked paprika|"
        "cocoa|tomatillos|achiote|epazote|garlic|adobo".split("|"),
        "guacamole|refried beans|corn tortillas|pico de gallo|salsa verde|elote|nopales".split("|"),
    ),
    "japanese": (
        "donburi|teriyaki|katsu|udon soup|ramen|yakisoba|sukiyaki|tempura|okonomiyaki|yakitori|"
        "shabu-shabu|nabe|gyoza".split("|"),
        "soy sauce|mirin|miso|dashi|sake|wasabi|sesame oil|nori|ginger|ponzu|shichimi|"
        "bonito flakes|yuzu|rice vinegar".split("|"),
        "pickled radish|edamame|seaweed salad|tsukemono|miso soup|cucumber sunomono|onigiri".split(
            "|"
        ),
    ),
}
