// Lints the explorer page's modules: `make lint-js`. The project itself needs no Node and has no build step.
import js from "@eslint/js";
import globals from "globals";

export default [
  {
    files: ["src/deformscope/explorer/*.js"],
    ...js.configs.recommended,
    languageOptions: { ecmaVersion: 2022, sourceType: "module", globals: globals.browser },
    rules: {
      ...js.configs.recommended.rules,
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-shadow": "error",
      "no-implicit-globals": "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML"].map((property) => ({
          property,
          message: "names of layers and files are text: make elements with el()",
        })),
      ],
    },
  },
];
