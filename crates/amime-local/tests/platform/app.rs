//! What runs in the pods of the tests.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

pub(crate) fn run(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", port, answer, ..] => serve(port, answer),
        ["get", address] => get(address),
        ["crash"] => {
            println!("about to fail");
            ExitCode::from(3)
        }
        ["print", text] => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        ["wait"] => loop {
            std::thread::park();
        },
        other => panic!("no such role: {other:?}"),
    }
}

/// Answers every connection; `$NAME` in the answer is a variable.
fn serve(port: &str, answer: &str) -> ExitCode {
    let answer = match answer.strip_prefix('$') {
        Some(name) => std::env::var(name).unwrap_or_default(),
        None => answer.to_owned(),
    };
    let listener = TcpListener::bind(("0.0.0.0", port.parse().expect("port"))).expect("bound");
    println!("serving {answer}");
    for stream in listener.incoming() {
        let mut stream = stream.expect("accepted");
        let answer = answer.clone();
        std::thread::spawn(move || {
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let length = answer.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let _ = stream.write_all(format!("{head}{answer}").as_bytes());
            }
        });
    }
    ExitCode::SUCCESS
}

/// Prints the body of one answer.
fn get(address: &str) -> ExitCode {
    match fetch(address) {
        Ok(body) => {
            print!("{body}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(7)
        }
    }
}

pub(crate) fn fetch(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}
