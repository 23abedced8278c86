//! Host ports of SCTP, on a kernel that has it: not every one does, that of hack/vm has. What all kernels have is tested in tests/root_network.rs.

mod fixtures;

use fixtures::machine::{Machine, PATIENCE, ask, json, until};
use fixtures::network;
use std::fs::File;
use std::io::Write;

/// A pod that waits, with a host port of SCTP.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo ready; sleep 1000']
    ports: [{containerPort: 9, hostPort: 9000, protocol: SCTP}]
";

#[test]
fn an_association_to_a_host_port_is_the_pods_in_both_families() {
    let machine = Machine::with_bridge();
    let neighbours = [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")];
    for (ours, theirs) in neighbours {
        let mut running = machine.start(POD, &[]);
        running.until("it runs", || ask(&machine, &["logs", "p/c"]).stdout.contains("ready"));
        let inspected = json(&machine, &["inspect", "p"]);
        assert_eq!(inspected["pods"][0]["hostPorts"], serde_json::json!(["sctp 9000 to 9"]));
        let pod = File::open(format!("/proc/{}/ns/net", inspected["pods"][0]["pausePid"])).expect("a namespace");
        let server = network::inside(&pod, || network::sctp_listen("[::]:9").expect("a kernel with SCTP"));
        let serving = std::thread::spawn(move || {
            // Until the pod itself has asked.
            while let Ok((mut stream, from)) = server.accept() {
                if stream.write_all(format!("hello {}", from.ip()).as_bytes()).is_err()
                    || from.ip().to_canonical().is_loopback()
                {
                    return;
                }
            }
        });
        let neighbour = network::neighbour(ours, theirs);
        let host_port = if ours.contains(':') { format!("[{ours}]:9000") } else { format!("{ours}:9000") };
        let says = |what: &str, said: Result<String, String>| match said {
            Ok(said) if said.starts_with("hello ") => Ok(()),
            other => Err(format!("{what}: {other:?}")),
        };
        for at in ["10.118.0.2:9", "[fd70:6f64:7772::2]:9", "127.0.0.1:9000", "[::1]:9000", &host_port] {
            until(PATIENCE, || says("the host", network::sctp_ask(at)));
        }
        until(PATIENCE, || says("another host", network::inside(&neighbour, || network::sctp_ask(&host_port))));
        // Its socket would keep the namespace.
        network::inside(&pod, || network::sctp_ask("127.0.0.1:9")).expect("the last one");
        serving.join().expect("no panic");
        drop((pod, neighbour));
        running.signal(2);
        running.signal(2);
        running.wait();
    }
}
