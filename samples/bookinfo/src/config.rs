//! Arguments and environment, read once into a typed [`Config`].
//!
//! The names of the variables are those that Bookinfo's images have always
//! used, so manifests written for them work unchanged.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Which of the sample's services this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The web page and the public API.
    Productpage,
    /// Facts about a book.
    Details,
    /// What readers say; v2 and v3 ask `ratings` for stars.
    Reviews,
    /// Stars per reader.
    Ratings,
    /// Says hello with its version and instance.
    Helloworld,
    /// Echoes requests and makes responses to order.
    Httpbin,
    /// Answers each line over TCP with a greeting before it.
    TcpEcho,
    /// Does nothing; a place to run commands in.
    Sleep,
}

impl Role {
    const ALL: [(&'static str, Role); 9] = [
        ("productpage", Role::Productpage),
        ("details", Role::Details),
        ("reviews", Role::Reviews),
        ("ratings", Role::Ratings),
        ("helloworld", Role::Helloworld),
        ("httpbin", Role::Httpbin),
        ("tcp-echo", Role::TcpEcho),
        ("sleep", Role::Sleep),
        ("curl", Role::Sleep),
    ];

    fn default_port(self) -> u16 {
        match self {
            Role::Helloworld => 5000,
            Role::Httpbin => 8080,
            Role::TcpEcho => 9000,
            _ => 9080,
        }
    }
}

/// A role as it is written on the command line: `reviews`, `reviews-v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleVersion {
    /// The service.
    pub role: Role,
    /// The version behind the dash, `v2`; none when it was not given.
    pub version: Option<String>,
}

/// A role that does not exist.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseRoleError(String);

impl fmt::Display for ParseRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Role::ALL.iter().map(|(name, _)| *name).collect();
        write!(f, "no role {:?}; the roles are {}", self.0, names.join(", "))
    }
}

impl std::error::Error for ParseRoleError {}

impl FromStr for RoleVersion {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for (name, role) in Role::ALL {
            let Some(rest) = text.strip_prefix(name) else { continue };
            if rest.is_empty() {
                return Ok(Self { role, version: None });
            }
            if let Some(version) = rest.strip_prefix("-v").filter(|v| !v.is_empty()) {
                return Ok(Self { role, version: Some(format!("v{version}")) });
            }
        }
        Err(ParseRoleError(text.to_owned()))
    }
}

/// Command line of the sample.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "bookinfo", about = "The Bookinfo sample and its companions", version)]
pub struct Args {
    /// Service to be, with an optional version: productpage, reviews-v2, …
    pub role: RoleVersion,
    /// TCP port to listen on; each role has the default of its image.
    #[arg(long, env = "PORT")]
    pub port: Option<u16>,
    /// Version, when the role does not name one.
    #[arg(long, env = "SERVICE_VERSION")]
    pub service_version: Option<String>,
    /// Arguments of the image: `9000,9001 hello` for tcp-echo; others ignore them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// How long each caller waits.
///
/// `reviews` is ready to wait longer for `ratings` than `productpage` waits
/// for `reviews`: the fault that the fault-injection exercise finds.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts;

impl Timeouts {
    /// `productpage` to any service.
    pub const PRODUCTPAGE: Duration = Duration::from_secs(3);
    /// Tries that `productpage` gives `reviews`.
    pub const REVIEWS_TRIES: u32 = 2;
    /// `reviews` v2 (black stars) to `ratings`.
    pub const RATINGS_BLACK: Duration = Duration::from_secs(10);
    /// Any other `reviews` to `ratings`.
    pub const RATINGS_OTHER: Duration = Duration::from_millis(2500);
}

/// Everything a role reads from outside.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) role: Role,
    /// `v1` unless told otherwise.
    pub(crate) version: String,
    pub(crate) port: u16,
    /// Name of this pod or host.
    pub(crate) instance: String,
    pub(crate) cluster: Option<String>,
    /// `host:port` of the services called.
    pub(crate) details: String,
    pub(crate) reviews: String,
    pub(crate) ratings: String,
    /// Whether `reviews` asks for stars; on for v2 and v3.
    pub(crate) enable_ratings: bool,
    /// `black` or `red`.
    pub(crate) star_color: String,
    pub(crate) args: Vec<String>,
}

impl Config {
    pub(crate) fn from_args(args: Args) -> anyhow::Result<Self> {
        Ok(Self::from_parts(args, &std::env::vars().collect()))
    }

    fn from_parts(args: Args, env: &HashMap<String, String>) -> Self {
        let var = |name: &str| env.get(name).filter(|value| !value.is_empty()).cloned();
        let domain = var("SERVICES_DOMAIN").map(|d| format!(".{d}")).unwrap_or_default();
        let service = |name: &str| {
            let upper = name.to_uppercase();
            let host = var(&format!("{upper}_HOSTNAME")).unwrap_or_else(|| name.to_owned());
            let port = var(&format!("{upper}_SERVICE_PORT")).unwrap_or_else(|| "9080".to_owned());
            // A host that carries its own port is meant as it stands.
            if host.contains(':') { host } else { format!("{host}{domain}:{port}") }
        };
        let role = args.role.role;
        let version = args.role.version.or(args.service_version).unwrap_or_else(|| "v1".to_owned());
        let enable_ratings = var("ENABLE_RATINGS")
            .map_or_else(|| version != "v1", |value| value.eq_ignore_ascii_case("true"));
        let default_color = if version == "v3" { "red" } else { "black" };
        Self {
            role,
            port: args.port.unwrap_or_else(|| role.default_port()),
            instance: var("POD_NAME").or_else(|| var("HOSTNAME")).unwrap_or_else(kernel_hostname),
            cluster: var("CLUSTER_NAME"),
            details: service("details"),
            reviews: service("reviews"),
            ratings: service("ratings"),
            enable_ratings,
            star_color: var("STAR_COLOR").unwrap_or_else(|| default_color.to_owned()),
            args: args.args,
            version,
        }
    }
}

fn kernel_hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(role: &str, env: &[(&str, &str)]) -> Config {
        let args = Args {
            role: role.parse().expect("role exists"),
            port: None,
            service_version: None,
            args: Vec::new(),
        };
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::from_parts(args, &env)
    }

    #[test]
    fn a_role_may_carry_its_version() {
        let parsed: RoleVersion = "reviews-v3".parse().expect("parses");
        assert_eq!(parsed, RoleVersion { role: Role::Reviews, version: Some("v3".to_owned()) });
        assert!("reviews-".parse::<RoleVersion>().is_err());
        assert!("tcp-echo".parse::<RoleVersion>().is_ok());
    }

    #[test]
    fn an_unknown_role_lists_the_known_ones() {
        let error = "shop".parse::<RoleVersion>().expect_err("no such role").to_string();
        assert!(error.contains("productpage, details"), "{error}");
    }

    #[test]
    fn versions_decide_the_stars_unless_the_environment_does() {
        let v1 = config("reviews-v1", &[]);
        let v3 = config("reviews-v3", &[]);
        let told = config("reviews-v1", &[("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")]);
        assert!(!v1.enable_ratings);
        assert_eq!((v3.enable_ratings, v3.star_color.as_str()), (true, "red"));
        assert_eq!((told.enable_ratings, told.star_color.as_str()), (true, "red"));
    }

    #[test]
    fn hosts_come_from_the_environment() {
        let plain = config("productpage", &[]);
        let domain = config("productpage", &[("SERVICES_DOMAIN", "shop.svc")]);
        let named = config("productpage", &[("REVIEWS_HOSTNAME", "127.0.0.1:4000")]);
        assert_eq!(plain.details, "details:9080");
        assert_eq!(domain.ratings, "ratings.shop.svc:9080");
        assert_eq!(named.reviews, "127.0.0.1:4000");
    }
}
