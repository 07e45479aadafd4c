package main

// serverCommands are the daemon and its tools.
type serverCommands struct {
	Serve   serveCmd   `cmd:"" help:"Hide the configured services and open them to knocks, in the foreground."`
	Check   checkCmd   `cmd:"" help:"Read a config, print it in full and point out what is weak."`
	Convert convertCmd `cmd:"" help:"Write the config of ours that does what a knockd.conf does."`
	Invite  inviteCmd  `cmd:"" help:"Print the line with which a user adds this server, and its QR code."`
	Status  statusCmd  `cmd:"" help:"Tell how the running daemon is."`
	Grants  grantsCmd  `cmd:"" help:"List who may reach what, and until when."`
	Open    openCmd    `cmd:"" help:"Let an address reach a service, as if it had knocked."`
	Close   closeCmd   `cmd:"" help:"End an address's grants before their time."`
	Events  eventsCmd  `cmd:"" help:"Follow what happens, a line each."`
	Explain explainCmd `cmd:"" help:"Follow one address: what each of its packets meant to each knock, and why it did or did not get in."`
	Replay  replayCmd  `cmd:"" help:"Play a capture file to the engine, and print what would have happened."`
	Confirm confirmCmd `cmd:"" help:"Keep what 'serve --undo-after' hid: you can still get in."`
	Hide    hideCmd    `cmd:"" help:"Hide the services of the last good config, without a daemon."`
	Down    downCmd    `cmd:"" help:"Make every port public again: remove the table."`
	Rules   rulesCmd   `cmd:"" help:"Print rules that do a config's sequences without a daemon, or a client that needs nothing."`
}

// processes are what the daemon starts of this same program, by the first word of
// their command lines: nobody types them.
var processes = map[string]func(*ui, []string) error{
	"engine":  runEngine,
	"lookup":  runLookup,
	"spawner": runSpawner,
}
