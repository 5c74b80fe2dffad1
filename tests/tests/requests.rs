//! Requests that are nearly right, and some that are nothing: each gets an answer, and none an error of the server's own.

use fuse_tests::requests::{Requests, SERVED};
use serde_json::{Value, json};

/// Requests that are made up.
const COUNT: usize = 300;

struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }

    fn value(&mut self) -> Value {
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        let all = [
            Value::Null,
            json!(true),
            json!(0),
            json!(-1),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1.5),
            json!(1e308),
            json!(""),
            json!("\0\u{FFFD}\u{1F40B}<|im_end|></tool_call>"),
            json!("x".repeat(3000)),
            json!([]),
            json!({}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
            json!({"type": "array", "items": {"anyOf": [{}, {"pattern": "("}]}}),
            json!([{"type": "text"}, {"role": "assistant"}, 5]),
            json!({"function": {"name": 5}}),
            deep,
        ];
        all[self.below(all.len())].clone()
    }

    /// Changes one part of a value.
    fn change(&mut self, value: &mut Value) {
        let stop = self.below(3) == 0;
        match value {
            Value::Object(map) if !map.is_empty() && !stop => {
                let key = map.keys().nth(self.below(map.len())).cloned().unwrap_or_default();
                match self.below(6) {
                    0 => {
                        map.remove(&key);
                    }
                    1 => {
                        let value = self.value();
                        map.insert(
                            ["stream", "n", "tools", "stop", "prompt", "temperature", "unheard_of"][self.below(7)]
                                .into(),
                            value,
                        );
                    }
                    _ => self.change(&mut map[&key]),
                }
            }
            Value::Array(list) if !list.is_empty() && !stop => {
                let at = self.below(list.len());
                match self.below(4) {
                    0 => {
                        list.remove(at);
                    }
                    1 => list.push(list[at].clone()),
                    _ => self.change(&mut list[at]),
                }
            }
            _ => *value = self.value(),
        }
    }
}

#[test]
fn each_request_gets_an_answer() {
    let requests = Requests::start();
    for (route, body) in SERVED {
        let status = requests.send(&[&[route], body.as_bytes()].concat());
        assert_eq!(status, 200, "{body}");
    }
    let (mut draw, mut refused) = (Draw(1), 0);
    for _ in 0..COUNT {
        let (route, body) = SERVED[draw.below(SERVED.len())];
        let mut value: Value = serde_json::from_str(body).unwrap();
        for _ in 0..=draw.below(3) {
            draw.change(&mut value);
        }
        let mut data = [&[route], value.to_string().as_bytes()].concat();
        match draw.below(8) {
            0 => data.truncate(draw.below(data.len())),
            1 => {
                let at = draw.below(data.len());
                data[at] = draw.below(256) as u8;
            }
            _ => {}
        }
        refused += usize::from(requests.send(&data) != 200);
    }
    assert!((COUNT / 10..COUNT).contains(&refused), "{refused} of {COUNT} are refused");
    assert_eq!(requests.send(&[&[SERVED[0].0], SERVED[0].1.as_bytes()].concat()), 200, "it serves still");
}
