//! Whole decoder graphs, as lowering makes them, of sizes that suit the interpreter.

use std::fmt::Write;

/// What differs between the families.
#[derive(Clone, Copy, Default)]
pub struct Family {
    /// Norms each head of q and k (Qwen3).
    pub qk_norm: bool,
    /// Biases on q, k and v (Qwen2).
    pub qkv_bias: bool,
}

/// The text of a graph of `layers` layers: hidden 16, 4 heads of 8 over 2 key heads, MLP 24, vocabulary 32.
pub fn decoder(name: &str, layers: usize, family: Family) -> String {
    let mut text = format!(
        "graph \"{name}\"
%tokens = input \"tokens\" : i32[T]
%positions = input \"positions\" : i32[T]
%embed = weight \"model.embed_tokens.weight\" : f32[32, 16]
%x0 = embedding %tokens %embed : f32[T, 16]
"
    );
    let mut caches = String::new();
    for i in 0..layers {
        text.push_str(&layer(i, family));
        write!(caches, ", %keys{i}, %values{i}").expect("writing to a string");
    }
    write!(
        text,
        "%norm = weight \"model.norm.weight\" : f32[16]
%xn = rms_norm %x{layers} %norm {{eps=1e-5}} : f32[T, 16]
%head = weight \"lm_head.weight\" : f32[32, 16]
%logits = matmul %xn %head : f32[T, 32]
%token = sample %logits : i32[T]
return %logits, %token{caches}
"
    )
    .expect("writing to a string");
    text
}

fn layer(i: usize, family: Family) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line} @{i}").expect("writing to a string");
    let weight =
        |name: &str, file: &str, shape: &str| format!("%{name}{i} = weight \"model.layers.{i}.{file}\" : f32[{shape}]");
    line(weight("n1_", "input_layernorm.weight", "16"));
    line(format!("%h{i} = rms_norm %x{i} %n1_{i} {{eps=1e-5}} : f32[T, 16]"));
    for (name, heads, rows) in [("q", 4, 32), ("k", 2, 16), ("v", 2, 16)] {
        line(weight(&format!("w{name}_"), &format!("self_attn.{name}_proj.weight"), &format!("{rows}, 16")));
        let mut bias = String::new();
        if family.qkv_bias {
            line(weight(&format!("b{name}_"), &format!("self_attn.{name}_proj.bias"), &rows.to_string()));
            bias = format!(" %b{name}_{i} {{biases=[1]}}");
        }
        line(format!("%{name}p{i} = matmul %h{i} %w{name}_{i}{bias} : f32[T, {heads}, 8]"));
        if name == "v" {
            continue;
        }
        let mut plain = format!("{name}p");
        if family.qk_norm {
            line(weight(&format!("n{name}_"), &format!("self_attn.{name}_norm.weight"), "8"));
            line(format!("%{name}n{i} = rms_norm %{name}p{i} %n{name}_{i} {{eps=1e-6}} : f32[T, {heads}, 8]"));
            plain = format!("{name}n");
        }
        line(format!("%{name}r{i} = rope %{plain}{i} %positions {{theta=10000, dim=8}} : f32[T, {heads}, 8]"));
    }
    line(format!("%kc{i} = state \"keys.{i}\" : f32[C, 2, 8]"));
    line(format!("%vc{i} = state \"values.{i}\" : f32[C, 2, 8]"));
    line(format!("%keys{i} = kv_append %kc{i} %kr{i} %positions : f32[C, 2, 8]"));
    line(format!("%values{i} = kv_append %vc{i} %vp{i} %positions : f32[C, 2, 8]"));
    line(format!("%a{i} = attention %qr{i} %keys{i} %values{i} %positions {{scale=0.35355338}} : f32[T, 4, 8]"));
    line(weight("wo_", "self_attn.o_proj.weight", "16, 32"));
    line(format!("%o{i} = matmul %a{i} %wo_{i} : f32[T, 16]"));
    line(format!("%y{i} = add %x{i} %o{i} : f32[T, 16]"));
    line(weight("n2_", "post_attention_layernorm.weight", "16"));
    line(format!("%g{i} = rms_norm %y{i} %n2_{i} {{eps=1e-5}} : f32[T, 16]"));
    line(weight("wg_", "mlp.gate_proj.weight", "24, 16"));
    line(weight("wu_", "mlp.up_proj.weight", "24, 16"));
    line(weight("wd_", "mlp.down_proj.weight", "16, 24"));
    line(format!("%gate{i} = matmul %g{i} %wg_{i} : f32[T, 24]"));
    line(format!("%up{i} = matmul %g{i} %wu_{i} : f32[T, 24]"));
    line(format!("%act{i} = silu %gate{i} : f32[T, 24]"));
    line(format!("%m{i} = mul %act{i} %up{i} : f32[T, 24]"));
    line(format!("%d{i} = matmul %m{i} %wd_{i} : f32[T, 16]"));
    line(format!("%x{} = add %y{i} %d{i} : f32[T, 16]", i + 1));
    text
}
