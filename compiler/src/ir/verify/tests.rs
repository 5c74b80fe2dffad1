use crate::ir::*;

fn one_add() -> (Graph, Value, NodeId) {
    let mut graph = Graph::new("");
    let x = graph.value(Op::Input("x".into()), &[], Type::activation(&[4]), None);
    let add = graph.add(Op::Add, &[x, x], vec![Type::activation(&[4])], Some(2));
    graph.outputs = vec![add.result(0)];
    (graph, x, add)
}

#[test]
fn an_error_carries_its_line_of_the_text_form() {
    let (mut graph, x, add) = one_add();
    assert_eq!(verify(&graph), Ok(()));
    let wrong = graph.value(Op::Mul, &[x, add.result(0)], Type::activation(&[5]), Some(3));
    graph.outputs = vec![wrong];
    let error = verify(&graph).expect_err("it is wrong");
    assert_eq!(error.node, Some(wrong.node));
    assert!(graph.to_string().lines().any(|line| line == error.line));
    assert_eq!(
        error.to_string(),
        "the graph is not sound: the result is f32[T, 5], but a makes it f32[T, 4]\n  \
         %2 = mul %0 %1 : f32[T, 5] @3"
    );
}

#[test]
fn nodes_that_no_output_needs_are_checked_too() {
    let (mut graph, x, _) = one_add();
    let wrong = graph.value(Op::Sample, &[x], Type::activation(&[1]), None);
    let error = verify(&graph).expect_err("it is wrong");
    assert_eq!((error.node, error.line.as_str()), (Some(wrong.node), "%2 = sample %0 : f32[T, 1]"));
}

#[test]
fn cycles_are_refused_and_can_be_printed() {
    let (mut graph, x, add) = one_add();
    graph.replace_uses(x, add.result(0));
    let error = verify(&graph).expect_err("it is cyclic");
    assert_eq!(error.to_string(), "the graph is not sound: the graph is cyclic: a node depends on itself");
    assert!(graph.to_string().contains("%1 = add %1 %1 : f32[T, 4] @2"));
}

#[test]
fn outputs_and_operands_must_exist() {
    let (mut graph, _, add) = one_add();
    graph.outputs = vec![add.result(0), add.result(1)];
    let error = verify(&graph).expect_err("there is one result");
    assert_eq!(error.message, "output 1 is result 1 of add, which has 1");

    let (mut graph, x, add) = one_add();
    graph.outputs = vec![x];
    graph.remove_unused(vec![add]);
    graph.outputs = vec![add.result(0)];
    let error = verify(&graph).expect_err("the node was removed");
    assert_eq!(error.message, "output 0 is of a node that the graph lacks");
    assert_eq!(graph.to_string(), "return %?\n");

    let (mut graph, _, add) = one_add();
    graph.value(Op::Sample, &[add.result(7)], Type::tokens(), None);
    let error = verify(&graph).expect_err("there is no result 7");
    assert_eq!(
        (error.message.as_str(), error.line.as_str()),
        ("x is a result that add lacks", "%2 = sample %? : i32[T]")
    );
}

#[test]
fn sizes_beyond_counting_are_refused() {
    let graph = Graph::parse("%0 = weight \"w\" : f32[4294967296, 4294967296]\nreturn %0").expect("it is a graph");
    let error = verify(&graph).expect_err("it is too large");
    assert_eq!(error.message, "result 0 is f32[4294967296, 4294967296]: more bytes than can be counted");
}
