from hf_recipes.command.main import main

if __name__ == "__main__":
    main()
