package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/httpd"
	"github.com/boughdb/bough/internal/metering"
	"github.com/boughdb/bough/internal/service"
)

// bytesValue is a flag that takes sizes like 20GiB.
type bytesValue int64

func (b *bytesValue) String() string { return strconv.FormatInt(int64(*b), 10) }
func (b *bytesValue) Type() string   { return "size" }

func (b *bytesValue) Set(s string) error {
	units := []struct {
		suffix string
		factor int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}, {"", 1}}
	for _, u := range units {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil || n < 0 || n > (1<<62)/u.factor {
				break
			}
			*b = bytesValue(n * u.factor)
			return nil
		}
	}
	return fmt.Errorf("%q is not a size; examples: 20GiB, 512MiB", s)
}

// rateValue is a flag that takes rate limits.
type rateValue struct {
	limit *httpd.RateLimit
	text  string
}

func (r *rateValue) String() string { return r.text }
func (r *rateValue) Type() string   { return "limit" }

func (r *rateValue) Set(s string) error {
	l, err := httpd.ParseRateLimit(s)
	if err == nil {
		*r.limit, r.text = l, s
	}
	return err
}

// serverFlags declares the flags of a server.
func serverFlags(f *pflag.FlagSet, c *service.Config) {
	dataDirFlag(f, &c.DataDir)
	f.StringVar(&c.HTTPListen, "http-listen", "127.0.0.1:8432", "address of the API; port 0 picks a free one")
	f.StringVar(&c.PGListen, "pg-listen", "127.0.0.1:5432", "address of the Postgres proxy; port 0 picks a free one")
	f.StringVar(&c.PGAdvertise, "pg-advertise", "", "address that clients use for the proxy, when it is another one (host:port or :port)")
	f.StringVar(&c.Domain, "domain", "db.localhost", "endpoints are ep-….DOMAIN")
	f.StringVar(&c.Region, "region", "local", "region id of projects that name none")
	f.StringVar(&c.Storage, "storage", "auto", "how branches share their data: btrfs (snapshots, in an image if need be), reflink (XFS and others), copy; auto takes the first that works")
	f.BoolVar(&c.Preallocate, "storage-preallocate", false, "reserve the pool image's space on the disk when it is made and when it grows")
	f.Var((*bytesValue)(&c.PoolSize), "storage-size", "first size of a new pool image, which grows by itself; 0 chooses from the free space")
	f.Var((*bytesValue)(&c.PoolLimit), "storage-limit", "size up to which the pool image grows by itself; 0: as far as the disk has room")
	f.Var((*bytesValue)(&c.HostReserve), "host-reserve", "space to keep free on the disk; 0 chooses")
	f.Var((*bytesValue)(&c.PoolReserve), "pool-reserve", "space to keep free in the pool; 0 chooses")
	f.StringVar(&c.DatabaseURL, "database-url", "", "control database; empty runs one in the data directory")
	f.StringSliceVar(&c.PostgresDirs, "postgres-dir", nil, "more folders with PostgreSQL builds (14 to 18)")
	f.StringVar(&c.Extensions, "extensions-allow", "default", "untrusted extensions that the owner of a database may create: names, default, all, none; -NAME takes one out")
	f.StringVar(&c.ComputeUser, "compute-user", "", "OS user of computes when the server is root; empty chooses bough or postgres")
	f.StringVar(&c.Cgroups, "cgroups", "auto", "enforce and autoscale the sizes of computes by control groups: auto (where root can) or off")
	f.StringVar(&c.TLSCert, "tls-cert", "", "certificate chain of the proxy (PEM); empty uses a local authority")
	f.StringVar(&c.TLSKey, "tls-key", "", "key of --tls-cert (PEM)")
	f.DurationVar(&c.Handshake, "handshake-timeout", 15*time.Second, "how long a Postgres client may take to authenticate")
	f.DurationVar(&c.ReconcileEvery, "reconcile-every", 30*time.Second, "how often what should be is compared with what is; see bough doctor")
	f.DurationVar(&c.ReconcilePatience, "reconcile-patience", time.Minute, "how long a difference must last before it is repaired")
	f.DurationVar(&c.MeteringEvery, "metering-every", metering.DefaultEvery, "how often usage is counted and quotas are enforced")
	f.IntVar(&c.MaxStarts, "concurrent-starts", 0, "computes that start at once, others queue; 0 means two for each core")
	f.Var((*bytesValue)(&c.History.SnapshotWAL), "snapshot-wal", "how much WAL a branch writes between two snapshots of its history; a moment is reached by replaying up to as much; 0 means 128 MiB")
	f.DurationVar(&c.History.SnapshotEvery, "snapshot-interval", 0, "how long a branch that is written to is without a snapshot of its history; 0 means an hour")
	f.DurationVar(&c.OperationsKeep, "operations-keep", control.DefaultOperationsKeep, "how long the record of an operation that has ended is kept (six months)")
	limit := &rateValue{limit: &c.RateLimit}
	_ = limit.Set("700/m,40/s") // as in the published service
	f.Var(limit, "rate-limit", "bound the API calls of one account in all, and of each operation; off for no bounds")
	f.StringVar(&c.PublicURL, "public-url", "", "where people reach the API, like https://bough.example.com: the start of the links in invitations, and the address in /api/v2/openapi.json")
	f.StringVar(&c.SMTPURL, "smtp-url", "", "server that sends invitations: smtp://user:password@host:587, or smtps://; without one their links are shown to who invites")
	f.StringVar(&c.SMTPFrom, "smtp-from", "", "sender of the invitations")
	f.BoolVar(&c.AllowPlain, "allow-plaintext", false, "let clients on this machine connect without TLS")
	f.BoolVar(&c.StopComputes, "stop-computes", false, "on Ctrl-C or SIGTERM stop the computes and the control database too")
	f.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
}

func dataDirFlag(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "data-dir", service.DefaultDataDir(), "data directory")
}

func logger(c service.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, core.Invalidf("--log-level must be one of debug, info, warn, error")
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, core.Invalidf("--log-format must be text or json")
}

func serveCommand() *cobra.Command {
	var cfg service.Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server until Ctrl-C or SIGTERM. Computes keep running then, unless --stop-computes says otherwise: the next
start takes them over. 'bough down' stops everything.

Several servers can share a data directory: each needs addresses of its own (--http-listen, --pg-listen) and should get the
same other flags. Every one serves the API and Postgres for all projects, they share the work, and when one ends the others go
on with it; admin.json names the one that has led the longest.

Every flag can be set by an environment variable: BOUGH_DATA_DIR for
--data-dir, and so on.`,
		Example: "  bough serve --data-dir /srv/bough --http-listen 0.0.0.0:8432 --pg-listen 0.0.0.0:5432 --domain db.example.com",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cfg)
			if err != nil {
				return err
			}
			return service.Run(cmd.Context(), cfg, log, func(s *service.Server) {
				a := s.Admin()
				fmt.Printf("Bough is ready.\n  API       %s\n  reference %s\n  API key   in %s\n  Postgres  %s\n  storage   %s\n  sizes     %s\n", a.APIURL, a.DocsURL(), cfg.DataDir+"/admin.json", a.PGAddr, s.Storage(), a.Sizes)
			})
		},
	}
	serverFlags(cmd.Flags(), &cfg)
	return cmd
}

func downCommand() *cobra.Command {
	var cfg service.Config
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the server, the computes and the control database, and unmount the pool",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			if err := service.Down(cmd.Context(), cfg.DataDir, log); err != nil {
				return err
			}
			fmt.Println("Everything is stopped. The data stays in " + cfg.DataDir + ".")
			return nil
		},
	}
	dataDirFlag(cmd.Flags(), &cfg.DataDir)
	return cmd
}

func statusCommand() *cobra.Command {
	var dir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := service.Look(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			server := "not running; start it with: bough serve"
			switch {
			case st.PID != 0 && st.Healthy:
				server = fmt.Sprintf("running (pid %d)", st.PID)
			case st.PID != 0:
				server = fmt.Sprintf("pid %d does not answer: %s", st.PID, st.Problem)
			}
			control := "not running"
			if st.ControlDB {
				control = "running"
			}
			fmt.Printf("server            %s\ndata directory    %s\n", server, st.DataDir)
			if st.PID != 0 {
				fmt.Printf("API               %s\nPostgres          %s\ncompute sizes     %s\n", st.APIURL, st.PGAddr, st.Sizes)
			}
			for _, m := range st.Servers {
				if m.PID != st.PID {
					fmt.Printf("another server    running (pid %d), API %s, Postgres %s\n", m.PID, cmp.Or(m.APIURL, "starting"), m.PGAddr)
				}
			}
			fmt.Printf("control database  %s\ncomputes running  %d\n", control, st.Computes)
			fmt.Printf("free space        %.1f GiB on the disk, %.1f GiB in the pool (%s)\n", gib(st.HostFree), gib(st.PoolFree), st.Pool)
			if st.Drifts > 0 {
				fmt.Printf("findings          %d; see: bough doctor\n", st.Drifts)
			}
			return nil
		},
	}
	dataDirFlag(cmd.Flags(), &dir)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }
