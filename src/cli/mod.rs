//! What people type: the command line, and a command a file. A command reads its arguments, calls the engine's verbs and
//! prints; it decides nothing about pods.
//!
//! Exit codes: 0; for `run` and `exec` that of the container; 124 when `--timeout` was over; 125 for podwright's own failure,
//! a wrong flag included; 126 and 127 when a command could not be executed or found; 130 after Ctrl-C. `doctor` and `verify`
//! exit with 1 when they find fault.

mod attach;
mod check;
mod completions;
mod config;
mod console;
mod cp;
mod daemon;
mod doctor;
mod exec;
mod find;
mod get;
mod images;
mod import;
mod inspect;
mod live;
mod logging;
mod login;
mod logs;
mod man;
mod outlet;
mod output;
mod plan_text;
mod planner;
mod pods;
mod port_forward;
mod progress;
mod prune;
mod ps;
mod pull;
mod remote;
mod rm;
mod rmi;
mod run;
mod save;
mod stats;
mod status;
mod stop;
mod streams;
mod terminal;
mod unit;
mod units;
mod verify;
mod version;

use crate::config::{Config, Flags};
use crate::error::{Context, Error, Kind, Result};
use crate::image::reference;
use crate::image::store::Store;
use crate::state::paths::Paths;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  podwright doctor                     what of this host is in the way, and the remedy
  podwright pull nginx                 an image, from its registry
  podwright import nginx.tar           the same, from an OCI layout or a docker archive
  podwright run pod.yaml               run a pod until its containers end
  podwright ps                         containers, with their state
  podwright logs web/nginx -f          the output of one container of a pod
  podwright verify web                 are the limits of a running pod those it asked for?

Exit codes:
  0 done; 124 timeout; 125 podwright's own failure; 126 not executable; 127 not found; 130 Ctrl-C;
  of run and exec otherwise the container's.

`podwright man COMMAND` prints a manual page; settings are in /etc/podwright/config.toml (`podwright config`).";

/// Runs Kubernetes pods on this host: limits that the kernel is seen to enforce, and no daemon, kubelet or runtime beside it.
#[derive(Debug, Parser)]
#[command(name = "podwright", version, after_help = EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// Directory of what survives a reboot: images, writable layers, volumes [env: PODWRIGHT_ROOT]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what does not: records and sockets of running pods [env: PODWRIGHT_STATE]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Configuration file, instead of /etc/podwright/config.toml [env: PODWRIGHT_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Least important message to log: off, error, warn, info, debug, trace [env: PODWRIGHT_LOG_LEVEL]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Format of the log on stderr: text, json [env: PODWRIGHT_LOG_FORMAT]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Warn of limits that this host cannot enforce instead of refusing the pod [env: PODWRIGHT_CGROUP_ALLOW_UNENFORCED]
    #[arg(long, global = true)]
    allow_unenforced_limits: bool,
    /// How results are printed: a table for people, JSON for scripts
    #[arg(short, long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    output: output::Format,
}

/// The commands; the order is that of `--help`.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Verify(verify::VerifyArgs),
    Pods(pods::PodsArgs),
    Ps(ps::PsArgs),
    Get(get::GetArgs),
    Logs(logs::LogsArgs),
    Exec(exec::ExecArgs),
    Attach(attach::AttachArgs),
    PortForward(port_forward::PortForwardArgs),
    Cp(cp::CpArgs),
    #[command(visible_alias = "describe")]
    Inspect(inspect::InspectArgs),
    #[command(visible_alias = "top")]
    Stats(stats::StatsArgs),
    Stop(stop::StopArgs),
    #[command(visible_alias = "delete")]
    Rm(rm::RmArgs),
    Images(images::ImagesArgs),
    Pull(pull::PullArgs),
    Import(import::ImportArgs),
    Save(save::SaveArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Rmi(rmi::RmiArgs),
    Prune(prune::PruneArgs),
    Daemon(daemon::DaemonArgs),
    Doctor(doctor::DoctorArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Version(version::VersionArgs),
}

/// What every command that works with pods or images starts from.
#[derive(Debug)]
struct Session {
    /// Where the engine's `Settings` come from, and what `podwright config` explains.
    config: Config,
    format: output::Format,
}

impl Session {
    /// The two directories, seen from no instance.
    fn paths(&self) -> Paths {
        let settings = self.config.settings();
        Paths { root: settings.root, state: settings.state, instance: None }
    }

    /// The image store.
    fn store(&self) -> Result<Store> {
        Store::open(&self.paths())
    }
}

/// The one runtime of a command: everything that waits does so on this thread.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "start a runtime")
}

/// Runs the command in `args` (with `argv[0]`) and returns the exit code.
///
/// # Errors
/// Whatever the command returns; [`Kind::InvalidArgument`] for a wrong command line. The caller prints it, once.
pub fn run(args: Vec<OsString>) -> Result<u8> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::print(&e.render().to_string())?;
            return Ok(0);
        }
        Err(e) => return Err(wrong_command_line(&e)),
    };
    match cli.command {
        // These work on any machine, whatever its configuration says.
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Version(args) => version::run(&args, cli.globals.output),
        command => session(&cli.globals).and_then(|session| with_session(command, &session)),
    }
}

fn with_session(command: Command, session: &Session) -> Result<u8> {
    match command {
        Command::Run(args) => run::run(&args, session),
        Command::Check(args) => check::run(&args, session),
        Command::Verify(args) => verify::run(&args, session),
        Command::Pods(args) => pods::run(&args, session),
        Command::Ps(args) => ps::run(&args, session),
        Command::Get(args) => get::run(args, session),
        Command::Logs(args) => logs::run(&args, session),
        Command::Exec(args) => exec::run(&args, session),
        Command::Attach(args) => attach::run(&args, session),
        Command::PortForward(args) => port_forward::run(&args, session),
        Command::Cp(args) => cp::run(&args, session),
        Command::Inspect(args) => inspect::run(&args, session),
        Command::Stats(args) => stats::run(&args, session),
        Command::Stop(args) => stop::run(&args, session),
        Command::Rm(args) => rm::run(&args, session),
        Command::Images(args) => images::run(&args, session),
        Command::Pull(args) => pull::run(&args, session),
        Command::Import(args) => import::run(&args, session),
        Command::Save(args) => save::run(&args, session),
        Command::Login(args) => login::run(&args, session),
        Command::Logout(args) => login::logout(&args, session),
        Command::Rmi(args) => rmi::run(&args, session),
        Command::Prune(args) => prune::run(&args, session),
        Command::Daemon(args) => daemon::run(&args, session),
        Command::Doctor(args) => doctor::run(&args, session),
        Command::Config(args) => config::run(&args, session),
        Command::Completions(_) | Command::Man(_) | Command::Version(_) => Err(Error::internal("needs no session")),
    }
}

/// Reads the configuration and starts the log.
fn session(globals: &Globals) -> Result<Session> {
    let config = Config::load(&flags(globals)?, std::env::vars_os())?;
    logging::start(config.value("log.level"), config.value("log.format"));
    reference::set_default_host(config.value("image.default_registry")).context(|| "image.default_registry")?;
    Ok(Session { config, format: globals.output })
}

/// The global flags as settings. A relative path is relative to where the user stands.
fn flags(globals: &Globals) -> Result<Flags> {
    let mut flags = Flags { file: globals.config.clone(), values: vec![] };
    for (key, flag, path) in [("root", "--root", &globals.root), ("state", "--state", &globals.state)] {
        let Some(path) = path else { continue };
        let path = std::path::absolute(path).context(|| format!("{flag} {:?}", path.display()))?;
        let text = path.into_os_string().into_string();
        flags.values.push((key, flag, text.map_err(|_| Error::invalid(format!("{flag} is not UTF-8")))?));
    }
    let words = [("log.level", "--log-level", &globals.log_level), ("log.format", "--log-format", &globals.log_format)];
    for (key, flag, word) in words {
        flags.values.extend(word.iter().map(|word| (key, flag, word.clone())));
    }
    if globals.allow_unenforced_limits {
        flags.values.push(("cgroup.allow_unenforced", "--allow-unenforced-limits", "true".to_owned()));
    }
    Ok(flags)
}

/// clap's message without its own `error: `, for ours stands in front.
fn wrong_command_line(e: &clap::Error) -> Error {
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::invalid("a command is needed; `podwright --help` lists them");
    }
    let text = e.render().to_string();
    Error::invalid(text.strip_prefix("error: ").unwrap_or(&text).trim_end())
}

/// Says in the first line that root is needed, before anything half works.
fn require_root(command: &str) -> Result<()> {
    if crate::sys::is_root() {
        return Ok(());
    }
    Err(Error::new(
        Kind::FailedPrecondition,
        format!(
            "root is required: `podwright {command}` works with namespaces and cgroups; run it with sudo or in a privileged container"
        ),
    ))
}

/// The whole tree, for completions and manual pages.
fn tree() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
