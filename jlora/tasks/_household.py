"""The invented home whose rooms, devices and lists fill the slots of the default task."""

AREAS = (
    "kitchen",
    "living room",
    "bedroom",
    "bathroom",
    "workshop",
    "office",
    "nursery",
    "hallway",
)

FLOORS = ("upstairs", "downstairs", "basement")

# What the home's devices are called, by Home Assistant's domain. No name occurs twice and none
# contains a room, so a sentence means one call only.
NAMES = {
    "light": ("chandelier", "desk", "bedside", "bookshelf", "mirror", "aquarium"),
    "switch": ("coffee maker", "heated blanket", "water pump", "Christmas tree"),
    "fan": ("tower fan", "extractor", "ventilator"),
    "cover": ("roller blind", "skylight", "sun sail", "left curtain"),
    "valve": ("sprinkler valve", "main water valve"),
    "lock": ("front door", "back gate", "tool cabinet"),
    "climate": ("thermostat", "heat pump", "radiator"),
    "media_player": ("television", "soundbar", "record player"),
    "input_boolean": ("guest mode", "vacation mode"),
    "button": ("doorbell", "feeder"),
    "input_button": ("panic alarm",),
    "scene": ("movie night", "sunrise", "romantic dinner"),
    "script": ("bedtime routine", "leave home"),
    "sensor": ("rain gauge", "power meter", "air quality"),
    "binary_sensor": ("motion sensor", "mailbox", "fridge door"),
    "person": ("Anna", "Ben", "Carla"),
    "vacuum": ("robot vacuum", "dust buster"),
    "lawn_mower": ("lawn robot", "grass cutter"),
    "todo": ("chores", "packing", "birthday"),
    "weather": ("Berlin", "Lisbon"),
}

# What people say where the grammar takes any words.
WORDS = {
    "message": ("dinner is ready", "the taxi is here", "we leave in five minutes", "good night"),
    "search_query": ("Abbey Road", "jazz classics", "The Matrix", "Bohemian Rhapsody", "Thriller"),
    "shopping_list_item": ("milk", "two lemons", "olive oil", "bread", "a dozen eggs", "coffee"),
    "timer_command": ("open the blinds", "turn off the heater", "lock the back gate"),
    "timer_name": ("pizza", "laundry", "tea", "workout", "nap", "pasta"),
    "todo_list_item": ("water the plants", "call the plumber", "passport", "buy candles"),
    "zone": ("work", "school", "gym", "library"),
}
