"""python -m serving --model_name=recommender --model_base_path=/models/recommender"""

from serving.flags import main

main()
