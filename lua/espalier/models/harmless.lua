--- Fields of config.json that do not change what a model of these architectures computes, as { [name] = true }. Every other field that an
-- architecture does not read is refused: a field that is ignored may be the one that matters.

local names = [[
architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path auto_map _commit_hash torchscript
tokenizer_class bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
use_cache cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset output_attentions output_hidden_states
return_dict use_return_dict gradient_checkpointing use_bfloat16 pretraining_tp is_decoder chunk_size_feed_forward
initializer_range initializer_factor attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout classifier_dropout
id2label label2id num_labels problem_type finetuning_task task_specific_params
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens prefix decoder_start_token_id max_new_tokens max_sequence_length
unsloth_fixed unsloth_version transformers.js_config is_llama_config
]]

local set = {}
for name in names:gmatch "%S+" do set[name] = true end
return set
