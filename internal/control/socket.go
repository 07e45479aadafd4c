package control

// ChangeSocket is the path of the socket for requests that change something,
// beside the one for requests that only ask. A connection by it is good for one
// change, and nobody else's connection for any.
func ChangeSocket(path string) string { return path + ".change" }

// Socket is the path of the socket that takes the request.
func (r Request) Socket(path string) string {
	switch r.Do {
	case DoOpen, DoClose, DoConfirm, DoExplain: // explain names the ports that somebody tried
		return ChangeSocket(path)
	}
	return path
}
