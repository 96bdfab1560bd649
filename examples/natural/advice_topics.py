"""The topics of the task `advice`: a goal, the cause of the trouble, and three tips, by line."""

# One topic a line, whatever its length.
# ruff: noqa: E501

_LINES = """
keep basil fresh | the leaves dry out and hate the cold | trim the stems | put it in a glass of water | keep it out of the fridge
fall asleep faster | bright screens keep the brain awake | put the phone away | dim the lights | go to bed at a fixed hour
remove a red wine stain | the dye sinks into the fibres quickly | blot it at once | pour salt on it | rinse with cold water
learn new words | the memory drops what it never uses | write them on cards | repeat them every evening | use them in sentences
save money on groceries | hungry shoppers buy too much | write a shopping list | eat before shopping | compare prices by weight
keep bread from going stale | dry air draws the water out | store it in a linen bag | freeze what is left | cut only what is needed
wake up early | the body clock needs a steady rhythm | set the alarm across the room | open the curtains | go to bed sooner
stop procrastinating | large jobs feel frightening | cut the job into small parts | start with five minutes | turn off the phone
clean a burnt pan | burnt sugar sticks to the metal | soak it in hot water | sprinkle baking soda | scrub with a soft brush
keep tomatoes tasty | cold ruins their flavour | leave them on the counter | keep the stem side down | eat them within a week
peel garlic quickly | the skin clings to the clove | crush it with a knife | shake the cloves in a jar | warm them for a moment
water plants on holiday | dry soil kills the roots | put a bottle upside down in the pot | move them into the shade | ask a neighbour
remember names | people hardly listen at introductions | say the name aloud | link it to a picture | write it down later
speak in public calmly | fear makes us talk too fast | practise in front of a mirror | breathe slowly | look at one friendly face
run a first race | the legs tire before the will does | start slowly | add a little distance each week | rest between runs
keep white shirts white | sweat and soap leave a yellow film | wash them apart | use less detergent | dry them in the sun
cook fluffy rice | loose starch makes grains stick | rinse it twice | measure the water | let it rest under a lid
boil eggs easy to peel | fresh eggs hold on to the shell | use older eggs | cool them in ice water | crack them all around
save water at home | most of it runs off unused | take shorter showers | fix dripping taps | collect rain for the garden
cut onions without tears | the juice turns into a sharp gas | chill the onion | use a sharp knife | open a window
get rid of fruit flies | ripe fruit draws them in | cover the fruit bowl | set out some vinegar | empty the bin daily
get ready for an exam | last-minute study does not stick | make a timetable | solve old papers | sleep enough
keep a bicycle chain clean | dust sticks to old oil | wipe it with a rag | oil it sparingly | store the bike indoors
pack a suitcase well | loose clothes waste space | roll the clothes | put shoes at the bottom | fill gaps with socks
keep a room cool | the sun heats the glass by day | close the blinds | air at night | switch off lamps
make better coffee | stale grounds taste flat | grind the beans fresh | use filtered water | clean the machine often
stop hiccups | the diaphragm cramps for a while | hold the breath | sip cold water | swallow some sugar
grow strong tomatoes | wet leaves invite disease | water at the root | tie them to a stick | pinch out the side shoots
get gum off a carpet | warm gum is soft and sticky | freeze it with ice | scrape with a spoon | dab on some vinegar
keep lettuce crisp | trapped moisture makes it rot | dry the leaves well | wrap them in a towel | use a closed box
read more books | free minutes go to the phone | carry a book everywhere | read before sleep | drop boring books
calm a crying baby | babies miss warmth and motion | hold it close | hum a quiet tune | check the nappy
train a puppy | dogs repeat what is rewarded | give small treats | keep lessons short | stay patient
sharpen a kitchen knife | the edge bends with use | use a wet stone | hold a steady angle | test it on paper
stay focused at work | each message breaks the thread | mute the phone | plan short breaks | tidy the desk
avoid a cold in winter | germs travel on hands | wash hands often | sleep well | eat fruit and vegetables
get over jet lag | the inner clock lags behind | walk in daylight | drink water | stay up until evening
clean windows without streaks | soap dries in the sun | choose a cloudy day | use a rubber blade | dry with newspaper
keep cut flowers alive | bacteria block the stems | change the water daily | cut the stems at an angle | remove low leaves
descale a kettle | hard water leaves lime behind | boil some vinegar | let it stand an hour | rinse it twice
make a paper boat float longer | wet paper goes soft | coat it with wax | fold thick paper | keep the base wide
find lost keys | we look without a plan | retrace the last steps | search one room at a time | check all pockets
quit biting nails | the habit runs without notice | keep nails short | put on bitter polish | squeeze a ball instead
write a good letter | long sentences lose the reader | make an outline | keep it short | read it aloud
paint a wall evenly | dust and grease repel the paint | wash the wall | use a roller | apply two thin coats
soothe a sunburn | the skin has lost its moisture | cool it with a wet cloth | put on aloe gel | drink plenty
ripen an avocado | it needs a gas that fruit gives off | put it in a paper bag | add a banana | wait two days
keep a fish tank clean | leftover food feeds algae | feed less | change some water weekly | keep it out of the sun
light a campfire | thick wood catches late | gather dry twigs | build a small cone | leave room for air
improve handwriting | haste spoils the shapes | write slowly | use lined paper | practise each letter
take sharper photos | tiny shakes blur the picture | hold the breath | lean on a wall | use a short exposure
make soup less salty | salt stays in the liquid | add a potato | pour in some water | stir in cream
stop a door from squeaking | dry metal rubs on metal | oil the hinges | wipe off the dust | tighten the screws
learn the guitar | fingers need time to toughen | practise daily | begin with three chords | use a metronome
drink more water | thirst comes too late | keep a bottle nearby | add a slice of lemon | drink with each meal
keep pasta from sticking | starch glues the pieces together | use a large pot | stir in the first minute | skip the oil
get a cat into a carrier | cats fear unknown places | leave it open for days | put a blanket inside | offer a treat
dry shoes fast | water hides in the lining | stuff them with paper | take out the soles | keep them off the heater
reduce food waste | we forget what is in the back | plan the meals | freeze leftovers | put old food in front
make friends in a new town | strangers rarely speak first | join a club | greet the neighbours | say yes to invitations
bake a moist cake | too much heat dries the crumb | lower the oven heat | add some yoghurt | cover it while cooling
hang a picture straight | the eye misjudges long lines | use a spirit level | mark the wall first | use two hooks
protect plants from frost | ice bursts the cells | cover them with cloth | move pots indoors | water by day
ease a stiff neck | long sitting tightens the muscles | stretch gently | raise the screen | use a warm towel
"""

TOPICS = tuple(
    dict(zip(("goal", "why", "t1", "t2", "t3"), map(str.strip, line.split("|")), strict=True))
    for line in _LINES.strip().splitlines()
)
